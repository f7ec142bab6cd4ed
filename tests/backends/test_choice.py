"""Which backend runs a model, and what is said of options that it cannot honour."""

import importlib
from dataclasses import fields, replace
from importlib import metadata
from pathlib import Path

import pytest

from hfpipe import backends, models, store
from hfpipe.backends.openvino import optimum_cli
from hfpipe.errors import BackendError, UnsupportedModel, UnsupportedOption, UsageError
from hfpipe.types import LoadOptions, ModelSource, Silent

# A value other than the default for each option that a backend may not honour.
SET = {
    "device": "-1",
    "device_map": "auto",
    "dtype": "float32",
    "attn": "eager",
    "ov_config": {"NUM_STREAMS": 1},
    "model_kwargs": {"attn_implementation": "eager"},
    "source_lang": "en",
    "target_lang": "de",
    "revision": "main",
    "trust_remote_code": True,
    "allow_pickle": True,
    "exact": True,
    "prompt_lookup": 5,
    "endpoint": "http://127.0.0.1:8000",
    "timeout": 5,
}


def source(*, architectures: tuple[str, ...] = ("LlamaForCausalLM",), **config: object) -> ModelSource:
    config = {"model_type": "llama", "architectures": list(architectures), "vocab_size": 100, **config}
    return ModelSource("the/model", Path("nowhere"), "transformers", config, {}, None)


def choose(name: str, model: ModelSource | None = None, resumed: str | None = None, **options: object):
    return backends.choose(LoadOptions(name, **options), model or source(), Silent(), resumed=resumed)


def test_what_is_chosen():
    """By auto for the format; else what is asked for, where it runs the format."""
    folder = "the folder holds"
    assert choose("auto", replace(source(), format="openvino")) == ("openvino", f"{folder} an OpenVINO model")
    assert choose("auto") == choose("default") == ("torch", f"{folder} a transformers model")
    assert choose("default", replace(source(), format="openvino")) == choose(
        "auto", replace(source(), format="openvino")
    )
    for name, spec in backends.BACKENDS.items():
        for model_format in spec.formats:
            assert choose(name, replace(source(), format=model_format)) == (name, "asked for")
    with pytest.raises(UnsupportedModel, match="torch backend does not run openvino models") as raised:
        choose("torch", replace(source(), format="openvino"))
    assert "--backend" in raised.value.hint


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "openvino"),
        ({"device": "-1"}, "openvino"),
        ({"device": "CPU"}, "openvino"),
        ({"ov_config": {"NUM_STREAMS": "1"}}, "openvino"),
        ({"exact": True}, "torch"),
        ({"trust_remote_code": True}, "openvino"),
        ({"device": "0"}, "torch"),
        ({"device_map": "auto"}, "torch"),
        ({"dtype": "float32"}, "torch"),
        ({"resumed": "torch"}, "torch"),
    ],
)
def test_auto_runs_on_the_export_in_the_cache(tiny_llama, tmp_path, monkeypatch, options, name):
    """On a CPU, where it can honour all options, and where it is the export that --backend openvino would use."""
    monkeypatch.setenv("HFPIPE_CACHE", str(tmp_path))
    monkeypatch.setattr(optimum_cli, "run_export", lambda *_, **__: None)
    model = replace(models.resolve(str(tiny_llama)), config={"dtype": "float16"})
    assert choose("auto", model) == ("torch", "the folder holds a transformers model")
    optimum_cli.own_export(model, LoadOptions(), Silent())
    assert choose("auto", model, **options)[0] == name
    if "resumed" not in options:
        assert choose("default", model, **options)[0] == "torch"
    monkeypatch.setattr(store, "identity", lambda *_, **__: "other weights")
    assert choose("auto", model)[0] == "torch"


def test_answers_that_are_resumed_keep_their_backend(tmp_path, monkeypatch):
    """Also where the export has gone from the cache: it is made again."""
    monkeypatch.setenv("HFPIPE_CACHE", str(tmp_path))
    assert choose("auto", resumed="openvino")[0] == "openvino"
    assert choose("auto", resumed="torch")[0] == "torch"


@pytest.mark.parametrize("call", [lambda: choose("troch"), lambda: backends.spec("troch")])
def test_an_unknown_name_lists_the_known(call):
    with pytest.raises(UsageError) as raised:
        call()
    assert all(name in raised.value.message for name in ("auto", *backends.BACKENDS))
    assert raised.value.hint == "Did you mean 'torch'?"


@pytest.mark.parametrize("name", backends.BACKENDS)
@pytest.mark.parametrize("option", SET)
def test_every_option_is_honoured_or_refused(name, option):
    options = LoadOptions(**{option: SET[option]})
    spec = backends.BACKENDS[name]
    if option in spec.honours | spec.common:
        backends.check_options(name, options)
        return
    with pytest.raises(UnsupportedOption, match=f"The {name} backend cannot honour {option}") as raised:
        backends.load(name, source(), options)
    able = [other for other, spec in backends.BACKENDS.items() if option in spec.honours | spec.common]
    assert raised.value.hint == f"It belongs to --backend {' or '.join(able)}."


def test_an_option_is_never_forgotten():
    """A new field of LoadOptions is honoured by one backend at least, and refused by another or known to all."""
    honoured = [spec.honours | spec.common for spec in backends.BACKENDS.values()]
    assert {field.name for field in fields(LoadOptions)} == frozenset().union(*honoured)
    assert set(SET) == frozenset().union(*honoured) - frozenset.intersection(*honoured)


@pytest.mark.parametrize("task", ["image-to-text", "automatic-speech-recognition", "feature-extraction", "translation"])
def test_tasks_are_those_of_text(task):
    if task == "translation":
        assert LoadOptions(task=task).task == task
        return
    with pytest.raises(UsageError, match=f"hfpipe does not do task {task}.") as raised:
        LoadOptions(task=task)
    assert raised.value.hint == "It does text-generation, text2text-generation, summarization, translation."


REFUSED = {
    "BertForMaskedLM": "the/model is a BertForMaskedLM",
    "RobertaForMaskedLM": "the/model is a RobertaForMaskedLM",
    "BertForPreTraining": "the/model is a BertForPreTraining",
    "LlamaForSequenceClassification": "the/model is a LlamaForSequenceClassification",
    "T5EncoderModel": "the/model is a T5EncoderModel",
    "WhisperForConditionalGeneration": "the/model: whisper is a model of sound or images",
    "T5ForConditionalGeneration": None,
    "GPT2LMHeadModel": None,
    "GPT2Model": None,
    "Gemma3ForConditionalGeneration": None,
}


@pytest.mark.parametrize("architecture", REFUSED)
def test_what_does_not_write_text_is_refused(architecture):
    """A masked language model loads without a missing tensor, and would answer noise."""
    config = (
        {"model_type": architecture.removesuffix("ForConditionalGeneration").lower(), "is_encoder_decoder": True}
        if "Cond" in architecture
        else {}
    )
    if not REFUSED[architecture]:
        assert backends.load("echo", source(architectures=(architecture,), **config), LoadOptions()).name == "echo"
        return
    for name in backends.BACKENDS:
        with pytest.raises(UnsupportedModel, match=REFUSED[architecture]) as raised:
            backends.load(name, source(architectures=(architecture,), **config), LoadOptions())
        assert raised.value.hint


def test_a_package_that_is_missing(monkeypatch):
    real = importlib.import_module

    def without(name: str) -> object:
        if name == "hfpipe.backends.openvino.decoding":
            raise ModuleNotFoundError("No module named 'openvino_genai'", name="openvino_genai")
        return real(name)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(BackendError, match="openvino backend needs the package openvino_genai") as raised:
        backends.load("openvino", source(), LoadOptions())
    assert raised.value.hint == "pip install openvino_genai"


# Backends of other packages

THEIRS = """
from hfpipe.backends.echo import EchoBackend

class Parrot(EchoBackend):
    name = "parrot"
    formats = frozenset({"transformers"})
    honours = frozenset({"device"})
"""


@pytest.fixture
def parrot(tmp_path, monkeypatch) -> None:
    """An installed package that brings a backend, as CONTRIBUTING.md says."""
    installed = tmp_path / "hfpipe_parrot-1.5.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: hfpipe-parrot\nVersion: 1.5\n")
    (installed / "entry_points.txt").write_text(
        "[hfpipe.backends]\nparrot = hfpipe_parrot:Parrot\nbroken = hfpipe_parrot_missing:Broken\n"
    )
    (tmp_path / "hfpipe_parrot.py").write_text(THEIRS)
    monkeypatch.syspath_prepend(tmp_path)


def test_a_backend_of_another_package(parrot):
    assert choose("parrot") == ("parrot", "asked for")
    assert backends.versions("parrot") == {"hfpipe-parrot": "1.5"}
    assert backends.load("parrot", source(), LoadOptions(device="-1")).name == "parrot"
    with pytest.raises(UnsupportedModel, match="parrot backend does not run openvino models"):
        choose("parrot", replace(source(), format="openvino"))
    with pytest.raises(UnsupportedOption, match="parrot backend cannot honour dtype"):
        backends.load("parrot", source(), LoadOptions(dtype="float32"))
    with pytest.raises(UsageError, match="known are auto, torch, openvino, echo, endpoint, parrot, broken") as raised:
        backends.spec("parot")
    assert raised.value.hint == "Did you mean 'parrot'?"
    with pytest.raises(BackendError, match="broken backend needs the package hfpipe_parrot_missing"):
        choose("broken")


def test_other_packages_are_not_looked_at_for_a_backend_of_hfpipe(monkeypatch):
    monkeypatch.setattr(metadata, "entry_points", lambda **_: pytest.fail("looked up"))
    for name in backends.BACKENDS:
        backends.check_options(name, LoadOptions())


def test_the_window_is_the_batch_size():
    assert backends.load("echo", source(), LoadOptions(batch_size=3)).batch_size == 3
    assert backends.load("echo", source(), LoadOptions()).batch_size > 1
