"""Models, engines and formats as rows."""

import shutil
from dataclasses import replace

import pytest

from hfpipe.bench import choices as choices_module
from hfpipe.bench import exports as bench_exports
from hfpipe.bench import origins
from hfpipe.bench.candidates import Candidate, candidates, flags
from hfpipe.bench.choices import Choices
from hfpipe.bench.exports import Exports
from hfpipe.bench.references import References
from hfpipe.errors import ConversionError, HFPipeError, ModelNotFound, UsageError
from hfpipe.export import Report
from hfpipe.types import LoadOptions, Silent
from tests.tiny_exports import in_this_process


@pytest.fixture
def exports(monkeypatch, tiny_llama_ov):
    """What was exported, in its format; the folder is always the same. int4 fails."""
    made = []

    def export(plan, *, verify, **_):
        made.append((plan.source.reference, plan.weight_format))
        if plan.weight_format == "int4":
            raise ConversionError("It cannot be quantized.")
        return Report(tiny_llama_ov, {"answer": {}} if verify else {})

    monkeypatch.setattr(bench_exports.exporter, "export", export)
    return made


@pytest.fixture(autouse=True)
def engines_in_this_process(monkeypatch):
    """They take seconds to import."""
    monkeypatch.setattr(choices_module, "run_child", in_this_process)


def found(*models, verify=True, **choices):
    with References(LoadOptions(), Silent()) as references:
        exports = Exports(references if verify else None)
        return list(candidates(Choices([str(model) for model in models], **choices), exports, Silent()))


def names(rows):
    return [one.row.name if isinstance(one, Candidate) else one.name for one in rows]


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
    given = ["--backend", "openvino", "--allow-pickle", "--exact", "--ov-config", '{"NUM_STREAMS": "1"}']
    assert fp32.row.command[3:-1] == given


def test_the_options_of_a_command():
    given = LoadOptions(backend="torch", device_map="auto", trust_remote_code=True, model_kwargs={"x": True, "y": "1"})
    assert flags(given) == [
        "--backend", "torch", "--device-map", "auto", "--trust-remote-code",
        "--model-kwarg", "x=true", "--model-kwarg", 'y="1"',
    ]  # fmt: skip


def test_a_context_that_is_too_short_is_seen_before_anything_is_exported(tiny_gpt2, exports):
    rows = found(tiny_gpt2, tokens=129)
    assert len(rows) == 4
    assert all("have 129 tokens, and its context is 128" in one.error for one in rows)
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
    monkeypatch.setattr(origins.reports, "read", lambda folder: {"source": {"model": str(tiny_llama)}})
    rows = found(tiny_llama, tiny_llama_ov, backends=["torch", "openvino"], weight_formats=["int8"])
    assert rows[-1].origin.folder == tiny_llama
    (alone,) = found(tiny_llama_ov)
    assert alone.origin is None
    (named,) = found(tiny_llama_ov, reference=str(tiny_llama))
    assert named.origin.folder == tiny_llama


def test_each_engine_gets_the_options_that_it_knows(tiny_llama, exports):
    loading = LoadOptions(device="-1", dtype="float32", ov_config={"NUM_STREAMS": "1"}, exact=True)
    torch, openvino, *_ = found(tiny_llama, loading=loading)
    assert torch.loading == replace(loading, backend="torch", ov_config={})
    assert openvino.loading == replace(loading, backend="openvino", dtype=None)


def test_a_revision_is_that_of_the_hub_model_alone():
    choices = Choices(["smollm2", "org/a", "org/a"], loading=LoadOptions(revision="v1"))
    assert [choices.revision(model) for model in choices.models] == [None, "v1", "v1"]


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
        ({"models": []}, "There is no model to measure."),
        ({"backends": ["tensorrt"]}, "Unknown backend 'tensorrt'"),
        ({"weight_formats": ["int3"]}, "Unknown weight format 'int3'"),
        ({"backends": ["torch"], "weight_formats": ["int8"]}, "torch cannot honour --weight-format"),
        (
            {"backends": ["torch"], "loading": LoadOptions(ov_config={"A": "b"})},
            "torch backend cannot honour --ov-config",
        ),
        ({"backends": ["openvino"], "loading": LoadOptions(dtype="float32")}, "openvino backend cannot honour --dtype"),
        ({"backends": ["echo"], "loading": LoadOptions(device="0")}, "echo backend cannot honour --device"),
        ({"models": ["org/a", "org/b"], "loading": LoadOptions(revision="v1")}, "one Hub id, and here are 2"),
        ({"models": ["org/a"], "reference": "org/b", "loading": LoadOptions(revision="v1")}, "and here are 2"),
        ({"models": ["smollm2"], "loading": LoadOptions(revision="v1")}, "one Hub id, and here are none"),
    ],
)
def test_what_cannot_be_chosen(choices, message):
    with pytest.raises(UsageError, match=message):
        Choices(**{"models": ["x"], **choices})


def test_formats_need_a_model_that_can_be_exported(tiny_llama_ov):
    with pytest.raises(UsageError, match="--weight-format is for models that can be exported"):
        found(tiny_llama_ov, weight_formats=["int8"])


def test_a_model_that_is_not_there(tmp_path):
    with pytest.raises(ModelNotFound):
        found(tmp_path / "no-model")


class Heard(Silent):
    def __init__(self):
        self.said = []

    def stage(self, text):
        self.said.append(text)

    def note(self, text):
        self.said.append(text)

    def progress(self, *given):
        self.said.append(given)


def test_what_an_export_does_is_said_with_its_name(tiny_llama, tiny_llama_ov, monkeypatch):
    def export(plan, *, reporter, **_):
        reporter.stage("Starting optimum-cli")
        reporter.progress("Loading", 1, 2, "steps", "a layer")
        reporter.note("Almost there.")
        reporter.stage(None)
        return Report(tiny_llama_ov, {})

    monkeypatch.setattr(bench_exports.exporter, "export", export)
    heard = Heard()
    list(candidates(Choices([str(tiny_llama)], weight_formats=["int8", "fp16"]), Exports(None), heard))
    assert heard.said == [
        one
        for label in ("openvino int8 (export 1 of 2)", "openvino fp16 (export 2 of 2)")
        for one in (
            f"{label}: Starting optimum-cli",
            (f"{label}: Loading", 1, 2, "steps", "a layer"),
            f"{label}: Almost there.",
            None,
        )
    ]
