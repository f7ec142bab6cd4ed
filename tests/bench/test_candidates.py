"""Models, engines and formats as rows."""

import json
import shutil
from dataclasses import replace

import pytest

from hfpipe import models
from hfpipe.bench import candidates as module
from hfpipe.bench.candidates import candidates, check_reference, flags, origin_of, tokenize
from hfpipe.bench.report import Report
from hfpipe.bench.spec import Spec, Workload, read_prompts
from hfpipe.errors import (
    ContextLengthError,
    ConversionError,
    HFPipeError,
    MissingVariable,
    ModelNotFound,
    TemplateError,
    UsageError,
)
from hfpipe.export import Report as Export
from hfpipe.export import report as reports
from hfpipe.store import identity
from hfpipe.text.tokenizer import load_tokenizer
from hfpipe.types import LoadOptions, Silent
from tests.tiny_exports import in_this_process


@pytest.fixture
def exports(monkeypatch, tiny_llama_ov):
    """What was exported, in its format; the folder is always the same. int4 fails."""
    made = []

    def export(source, options, reference, reporter, label):
        reporter.note(f"Exporting {label}.")
        made.append((source.reference, options.weight_format))
        if options.weight_format == "int4":
            raise ConversionError("It cannot be quantized.")
        return Export(tiny_llama_ov, {"answer": {}} if reference else {})

    monkeypatch.setattr(module.exporter, "export_to_cache", export)
    return made


@pytest.fixture(autouse=True)
def engines_in_this_process(monkeypatch):
    """They take seconds to import."""
    monkeypatch.setattr(module, "run_child", in_this_process)


def spec(*models, tokens=2, **choices):
    return Spec(tuple(map(str, models)), Workload(tokens - 1, 1), **choices)


def found(*models, verify=True, **choices):
    """A candidate, or the row of one that cannot be made."""
    report = Report({}, {}, "", [])
    ready = candidates(spec(*models, **choices), report, (lambda source: None) if verify else None, Silent())
    by_name = {one.row.name: one for one in ready}
    return [by_name.get(row.name, row) for row in report.configurations]


def names(rows):
    return [getattr(one, "row", one).name for one in rows]


def test_a_model_on_every_engine_and_in_every_format(tiny_llama, exports):
    rows = found(tiny_llama)
    assert names(rows) == ["torch", "openvino fp32", "openvino int8", "openvino int4"]
    assert [name for _, name in exports] == ["fp32", "int8", "int4"]
    assert rows[-1].error == "It cannot be quantized."
    assert [one.loading.backend for one in rows[:-1]] == ["torch", "openvino", "openvino"]
    assert [one.source.format for one in rows[:-1]] == ["transformers", "openvino", "openvino"]
    assert {one.origin.folder for one in rows[:-1]} == {tiny_llama}
    assert all(one.row.size_mb > 0.1 for one in rows[:-1])


def test_the_commands_to_get_it(tiny_llama, exports):
    torch, fp32, *_ = found(tiny_llama)
    assert torch.row.prepare == []
    assert torch.row.command == ["hfpipe", "run", str(tiny_llama), "--backend", "torch", "What is EEG?"]
    assert fp32.row.prepare == ["hfpipe", "export", str(tiny_llama), "--weight-format", "fp32"]
    assert fp32.row.command == ["hfpipe", "run", f"{tiny_llama.name}-ov-fp32", "--backend", "openvino", "What is EEG?"]


def test_what_is_not_verified_is_not_verified_by_the_command_either(tiny_llama, exports):
    torch, *others = found(tiny_llama, verify=False)
    assert torch.row.prepare == []
    assert [one.row.prepare[-1] for one in others[:-1]] == ["--no-verify"] * 2


def test_the_commands_have_the_options_that_were_measured(tiny_llama, exports):
    loading = LoadOptions(dtype="float32", ov_config={"NUM_STREAMS": "1"}, allow_pickle=True, exact=True)
    torch, fp32, *_ = found(tiny_llama, loading=loading)
    assert torch.row.command[3:-1] == ["--backend", "torch", "--dtype", "float32", "--allow-pickle", "--exact"]
    assert fp32.row.prepare[-1] == "--allow-pickle"
    given = ["--backend", "openvino", "--ov-config", '{"NUM_STREAMS": "1"}', "--allow-pickle", "--exact"]
    assert fp32.row.command[3:-1] == given


def test_the_options_of_a_command():
    given = LoadOptions(backend="torch", device_map="auto", trust_remote_code=True, model_kwargs={"x": True, "y": "1"})
    assert flags(given) == [
        "--backend", "torch", "--device-map", "auto",
        "--model-kwarg", "x=true", "--model-kwarg", 'y="1"', "--trust-remote-code",
    ]  # fmt: skip


def test_a_context_that_is_too_short_is_seen_before_anything_is_exported(tiny_gpt2, exports):
    rows = found(tiny_gpt2, tokens=129)
    assert len(rows) == 4
    assert all("have 129 tokens, and the model's context is 128" in one.error for one in rows)
    assert exports == []
    assert found(tiny_gpt2, tokens=128, backends=["torch"])[0].row.error is None


def test_a_reference_is_a_transformers_model(tiny_llama_ov):
    with pytest.raises(UsageError, match="is not a transformers model"):
        found(tiny_llama_ov, reference=str(tiny_llama_ov))


def test_other_files_of_a_folder_are_no_part_of_its_size(tiny_llama, tmp_path):
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    (one,) = found(folder, backends=["torch"])
    (folder / "training.log").write_bytes(b"x" * 9_000_000)
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.json").write_bytes(b"x" * 9_000_000)
    (same,) = found(folder, backends=["torch"])
    assert one.row.size_mb == same.row.size_mb


def test_what_was_asked_for_alone(tiny_llama, exports):
    assert names(found(tiny_llama, backends=["torch"])) == ["torch"]
    assert names(found(tiny_llama, weight_formats=["int8"])) == ["torch", "openvino int8"]
    assert names(found(tiny_llama, backends=["openvino"], weight_formats=["int8", "fp16"])) == [
        "openvino int8",
        "openvino fp16",
    ]
    assert names(found(tiny_llama, backends=["echo"])) == ["echo"]


def test_an_openvino_folder_is_measured_as_it_is(tiny_llama_ov, exports):
    (one,) = found(tiny_llama_ov)
    assert (one.row.name, one.source.folder, one.origin, exports) == ("openvino", tiny_llama_ov, None, [])


def test_several_models_are_told_apart(tiny_llama, tiny_llama_ov, exports):
    rows = found(tiny_llama, tiny_llama_ov, tiny_llama_ov, backends=["torch", "openvino"], weight_formats=["int8"])
    name, export = tiny_llama.name, tiny_llama_ov.name
    assert names(rows) == [
        f"{name} torch",
        f"{name} openvino int8",
        f"{export} torch",
        f"{export} openvino",
        f"{export} torch (2)",
        f"{export} openvino (2)",
    ]
    assert rows[2].error.startswith("The torch backend does not run openvino models.")


def test_models_with_equal_last_parts_are_told_apart(tiny_llama, tmp_path):
    folders = [shutil.copytree(tiny_llama, tmp_path / name / "model") for name in ("a", "b")]
    rows = found(*folders, tiny_llama, backends=["echo"])
    assert names(rows) == [f"{folders[0]} echo", f"{folders[1]} echo", f"{tiny_llama.name} echo"]


def test_the_source_of_an_openvino_folder(tiny_llama, tiny_llama_ov, exports, monkeypatch):
    monkeypatch.setattr(reports, "read", lambda folder: {"source": {"model": str(tiny_llama)}})
    rows = found(tiny_llama, tiny_llama_ov, backends=["torch", "openvino"], weight_formats=["int8"])
    assert rows[-1].origin.folder == tiny_llama
    (alone,) = found(tiny_llama_ov)
    assert alone.origin is None
    (named,) = found(tiny_llama_ov, reference=str(tiny_llama))
    assert named.origin.folder == tiny_llama


def test_a_revision_is_found_once_and_then_a_folder_is_measured(tiny_llama, monkeypatch):
    """Loading a folder of a revision would be an error. The commands for a person have it."""
    asked, resolve = [], models.resolve

    def of_the_hub(model, *, revision=None, **options):
        asked.append(revision)
        return replace(resolve(str(tiny_llama), **options), reference=model)

    monkeypatch.setattr(models, "resolve", of_the_hub)
    (one,) = found("org/a", backends=["torch"], loading=LoadOptions(revision="v1"))
    assert (asked, one.loading.revision) == (["v1"], None)
    assert one.row.command[:5] == ["hfpipe", "run", "org/a", "--revision", "v1"]


def test_each_engine_gets_the_options_that_it_knows(tiny_llama, exports):
    loading = LoadOptions(device="-1", dtype="float32", ov_config={"NUM_STREAMS": "1"}, exact=True)
    torch, openvino, *_ = found(tiny_llama, loading=loading)
    assert torch.loading == replace(loading, backend="torch", ov_config={})
    assert openvino.loading == replace(loading, backend="openvino", dtype=None)


def test_a_revision_is_that_of_the_hub_model_alone():
    given = spec("smollm2", "org/a", "org/a", loading=LoadOptions(revision="v1"))
    assert [given.revision(model) for model in given.models] == [None, "v1", "v1"]


def test_a_device_that_an_engine_does_not_have_is_found_before_its_exports(tiny_llama, exports):
    torch, *others = found(tiny_llama, loading=LoadOptions(device="auto"))
    assert torch.error.startswith("Unknown device 'auto'.")
    assert [one.row.name for one in others[:2]] == ["openvino fp32", "openvino int8"]
    exports.clear()
    with pytest.raises(HFPipeError, match="'9' on this machine"):
        found(tiny_llama, loading=LoadOptions(device="9"))
    assert exports == []


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"models": ()}, "No model to measure."),
        ({"repeats": 0}, r"repeats must be at least 1, not 0."),
        ({"backends": ["tensorrt"]}, "Unknown backend 'tensorrt'"),
        ({"weight_formats": ["int3"]}, "Unknown weight format 'int3'"),
        ({"backends": ["torch"], "weight_formats": ["int8"]}, "torch cannot honour weight_formats"),
        (
            {"backends": ["torch"], "loading": LoadOptions(ov_config={"A": "b"})},
            "torch backend cannot honour.* ov_config",
        ),
        (
            {"backends": ["openvino"], "loading": LoadOptions(dtype="float32")},
            "cannot honour.* dtype",
        ),
        ({"backends": ["echo"], "loading": LoadOptions(device="0")}, "cannot honour.* device"),
        ({"models": ("org/a", "org/b"), "loading": LoadOptions(revision="v1")}, "exactly one Hub model, got 2"),
        ({"models": ("org/a",), "reference": "org/b", "loading": LoadOptions(revision="v1")}, "got 2"),
        ({"models": ("smollm2",), "loading": LoadOptions(revision="v1")}, "exactly one Hub model, got 0"),
        ({"quality": False, "reference": "org/b"}, "quality=False cannot be combined with text or reference"),
    ],
)
def test_what_cannot_be_chosen(choices, message):
    with pytest.raises(UsageError, match=message):
        Spec(**{"models": ("x",), "workload": Workload(8, 8), **choices})


@pytest.mark.parametrize("numbers", [(0, 1), (1, 0), (1, 1, (0,))])
def test_numbers_are_from_1(numbers):
    with pytest.raises(UsageError, match=r"must be (at least|numbers from) 1"):
        Workload(*numbers)


def test_formats_need_a_model_that_can_be_exported(tiny_llama_ov):
    with pytest.raises(UsageError, match="need a model that can be exported"):
        found(tiny_llama_ov, weight_formats=["int8"])


def test_a_model_that_is_not_there(tmp_path):
    with pytest.raises(ModelNotFound):
        found(tmp_path / "no-model")


def test_which_export_is_under_way_is_told(tiny_llama, exports):
    notes = []
    heard = Silent()
    heard.note = notes.append
    given = spec(tiny_llama, weight_formats=["int8", "fp16"])
    candidates(given, Report({}, {}, "", []), None, heard)
    assert notes == ["Exporting openvino int8 (1 of 2).", "Exporting openvino fp16 (2 of 2)."]


# What an OpenVINO folder is compared with


@pytest.fixture
def llama(tiny_llama):
    return models.resolve(str(tiny_llama))


@pytest.fixture
def export(tiny_llama_ov):
    return models.resolve(str(tiny_llama_ov))


def made_of(monkeypatch, **source):
    """Have every export say what it was made of."""
    monkeypatch.setattr(reports, "read", lambda folder: {"source": source})


def test_the_source_is_the_one_that_is_named(llama, export, tiny_gpt2, monkeypatch):
    gpt2 = models.resolve(str(tiny_gpt2))
    assert origin_of(llama, [llama, export], gpt2) is llama
    assert origin_of(export, [llama, export], None) is None
    assert origin_of(export, [llama, export], gpt2) is gpt2
    made_of(monkeypatch, model=llama.reference)
    assert origin_of(export, [llama, export], gpt2) is llama
    assert origin_of(export, [export], gpt2) is gpt2


def test_a_reference_that_may_be_the_source(llama, export):
    assert check_reference(llama, [export]) == []
    # What only one of them says is no reason.
    assert check_reference(replace(llama, config={}), [export]) == []


@pytest.mark.parametrize("key", ["model_type", "hidden_size", "num_hidden_layers", "vocab_size"])
def test_a_reference_of_another_architecture(llama, export, key):
    other = replace(llama, config={**llama.config, key: 7})
    with pytest.raises(UsageError) as caught:
        check_reference(other, [export])
    assert f"{export.reference} was not made of {llama.reference}: its {key} is " in caught.value.message
    assert "--reference" in caught.value.hint
    assert check_reference(other, []) == []


def test_a_reference_whose_weights_are_others(llama, export, monkeypatch):
    made_of(monkeypatch, model="org/model", sha256=identity(llama.folder))
    assert check_reference(llama, [export]) == []
    made_of(monkeypatch, model="org/model", sha256="0" * 64)
    (warning,) = check_reference(llama, [export])
    assert warning.startswith(f"{export.reference} was made of another model than {llama.reference}, or of another ")
    made_of(monkeypatch, model="org/model")
    assert check_reference(llama, [export]) == []


# The user's own prompts


def records(tmp_path, *lines):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return read_prompts(path)


def tokenized(given, folder):
    return tokenize(Spec(("m",), Workload(None, 5), prompts=given), models.resolve(str(folder)))


def test_they_are_put_to_the_model_as_batch_does_it(tiny_gpt2, tiny_llama, tmp_path):
    given = records(tmp_path, {"question": "What is EEG?"}, {"prompt": "What is EEG?", "max_tokens": 3})
    first, second = tokenized(given, tiny_gpt2)
    assert (first[1], second[1]) == (5, 3)
    asked = "Question: What is EEG?\n\nAnswer: Let's think step by step."
    assert first[0] == second[0] == load_tokenizer(tiny_gpt2).encode(asked, True)
    as_chat, _ = tokenized(given, tiny_llama)
    assert as_chat[0] != first[0]


@pytest.mark.parametrize(
    ("line", "kind", "said"),
    [
        ({"text": "x"}, MissingVariable, "No value for {question}"),
        ({"prompt": "x", "max_tokens": 128}, ContextLengthError, "tokens, and the model's context is 128."),
        ({"messages": [{"role": "user", "content": "x"}]}, TemplateError, "Messages need a chat template"),
    ],
)
def test_one_that_does_not_fit_the_model_is_said_with_its_line(tiny_gpt2, tmp_path, line, kind, said):
    given = records(tmp_path, {"prompt": "a"}, "", line)
    with pytest.raises(kind) as caught:
        tokenized(given, tiny_gpt2)
    assert caught.value.message.startswith("Line 3 of the prompts: ")
    assert said in caught.value.message
    # Hints of other commands would not help.
    assert caught.value.hint is None


def test_a_line_that_is_none_and_a_file_without_any(tmp_path):
    with pytest.raises(UsageError, match=r"Invalid prompt in line 2 of .*: "):
        records(tmp_path, {"prompt": "a"}, "{")
    with pytest.raises(UsageError, match="has no prompts"):
        records(tmp_path)
