"""The work of an export without its children: what is done anew, what is left alone, what is said."""

import doctest
import errno
import json
import os
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import hfpipe
from hfpipe import models, store
from hfpipe.errors import ConversionError, HFPipeError, UnsupportedModel, UsageError
from hfpipe.export import ExportOptions, Options, exporter
from hfpipe.export import report as reports
from hfpipe.export.plan import Plan, make_plan
from hfpipe.quality.compare import Reference
from hfpipe.types import Silent
from tests.fake_models import write_model

MEASURED = {"answer": {"prompt": "a", "text": "b"}, "weights": {"int8": 1.0}, "tokenizer": {"missing": []}}


class Children:
    """What the children were asked to do; each name in `failing` fails."""

    def __init__(self):
        self.asked, self.failing = [], set()

    def convert(self, source, command, *, environment=None, check_only=False, **given):
        self._ask("check" if check_only else "convert", environment)
        self.given = {"command": command, **given}
        if not check_only:
            (Path(command[-1]) / "openvino_model.xml").write_text("new")
            (Path(command[-1]) / "openvino_model.bin").write_bytes(b"weights")
        return 3_000_000

    def score(self, source, folder, **_):
        (folder / "rows").write_text("half of it")
        self._ask("score", folder)
        return Reference(folder, (), 1, "float32")

    def verify(self, module, arguments, **_):
        if module == "hfpipe.export.rounding":
            self._ask("round", arguments)
            if "no chain" in self.failing:
                raise UnsupportedModel("The blocks of this model are no chain.")
            return 4_000_000
        self._ask("verify", arguments)
        return MEASURED

    def _ask(self, name, what):
        self.asked.append((name, what))
        if name in self.failing:
            raise ConversionError(f"{name} failed")

    @property
    def names(self):
        return [name for name, _ in self.asked]


@pytest.fixture
def children(monkeypatch):
    made = Children()
    monkeypatch.setattr(exporter, "run_export", made.convert)
    monkeypatch.setattr(exporter, "make_reference", made.score)
    monkeypatch.setattr(exporter, "run_child", made.verify)
    return made


@pytest.fixture
def model(tmp_path, monkeypatch, tmp_path_factory):
    monkeypatch.setenv("HFPIPE_CACHE", str(tmp_path_factory.mktemp("cache")))
    return write_model(tmp_path / "model")


def planned(model, output="out", **options) -> Plan:
    options = {"weight_format": "int8", **options}
    return make_plan(models.resolve(str(model)), model.parent / output, ExportOptions(**options), verify=False)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


WRITTEN = ["README.md", "hfpipe.json", "openvino_model.bin", "openvino_model.xml"]


def test_what_is_done(model, children):
    """The children write where the export is made."""
    stages = Stages(model.parent / "out")
    done = exporter.export(planned(model), reporter=stages)
    assert children.names == ["convert", "score", "verify"]
    assert (done.made, done.folder) == (True, model.parent / "out")
    assert names(done.folder) == WRITTEN
    assert json.loads((done.folder / "hfpipe.json").read_text()) == done.data
    assert set(MEASURED) < set(done.data)
    assert done.data["warnings"] == []
    assert set(done.data["seconds"]) == {"export", "verification"}
    assert names(model.parent) == ["model", "out"]
    (_, environment), (_, reference), (_, verification) = children.asked
    places = [*(environment[name] for name in ("TMPDIR", "TEMP", "TMP")), reference, verification["temporary"]]
    assert all(Path(place).is_relative_to(model.parent) for place in places)
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert (stages.seen[0], stages.seen[-1]) == ("Starting optimum-cli", None)


@pytest.fixture
def with_layers(model):
    """The same model with layers that int4 takes."""
    shapes = {f"model.layers.0.self_attn.{name}.weight": (64, 64) for name in ("q_proj", "v_proj")}
    save_file({name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, model / "model.safetensors")
    return model


def test_calibrated_int4_is_rounded_first(with_layers, children):
    """nncf is given the numbers, and neither text nor a method. The memory is that of the child that took most."""
    plan = planned(with_layers, weight_format="int4")
    done = exporter.export(plan, verify=False)
    assert children.names == ["round", "convert"]
    (_, asked), _ = children.asked
    assert (asked["in_4_bits"], asked["in_8_bits"]) == tuple(
        {f"model.layers.0.self_attn.{name}_proj.weight": False} for name in "qv"
    )
    assert asked["group_size"] == 32
    assert asked["texts"] == list(plan.calibration.samples)
    assert str(children.given["numbers"]) == asked["output"]
    assert Path(asked["output"]).is_relative_to(with_layers.parent)
    assert (children.given["calibration"], children.given["in_8_bits"]) == ((), [".*v_proj/.*"])
    assert "--gptq" not in children.given["command"]
    assert (done.data["peak_memory"], done.data["request"]["rounded_by"]) == (4_000_000, "hfpipe")
    assert "made_with" not in done.data


def test_what_hfpipe_does_not_round_nncf_does_and_that_is_said(with_layers, children):
    """On the screen and in the report; the same request does nothing again."""
    children.failing.add("no chain")
    stages = Stages(with_layers.parent / "out")
    plan = planned(with_layers, weight_format="int4")
    done = exporter.export(plan, verify=False, reporter=stages)
    assert children.names == ["round", "convert"]
    assert stages.notes == ["Warning: The blocks of this model are no chain. nncf quantizes it, which loses more."]
    assert (children.given["numbers"], children.given["calibration"]) == (None, plan.calibration.samples)
    assert "--gptq" in children.given["command"]
    assert "--gptq" in done.data["optimum_cli"]
    assert "rounded_by" not in done.data["made_with"]
    assert "by GPTQ of hfpipe" not in (done.folder / "README.md").read_text()
    assert not exporter.export(plan, verify=False).made


class Stages(Silent):
    """They end before the export has its name."""

    def __init__(self, output):
        self.output, self.seen, self.notes = output, [], []

    def stage(self, text):
        assert not self.output.exists()
        self.seen.append(text)

    def note(self, text):
        self.notes.append(text)


def test_a_check_writes_nothing(model, children):
    exporter.check(planned(model))
    assert children.names == ["check"]
    assert names(model.parent) == ["model"]


def test_the_same_request_does_nothing(model, children):
    (model.parent / "out").mkdir()
    first = exporter.export(planned(model))
    children.asked.clear()
    again = exporter.export(planned(model))
    assert (first.made, again.made, again.data, children.names) == (True, False, first.data, [])
    assert exporter.export(planned(model), verify=False).made is False
    assert exporter.export(planned(model), force=True).made
    assert names(model.parent / "out") == WRITTEN


def test_an_export_that_was_not_verified_is_not_what_was_asked_for(model, children):
    done = exporter.export(planned(model), verify=False)
    assert children.names == ["convert"]
    assert set(done.data["seconds"]) == {"export"}
    assert not set(MEASURED) & set(done.data)
    with pytest.raises(HFPipeError, match="made without verification"):
        exporter.export(planned(model))
    assert not exporter.export(planned(model), verify=False).made


@pytest.mark.parametrize(
    "options", [{"weight_format": "fp16"}, {"sym": True}, {"weight_format": "int4"}, {"extra": ("--variant", "x")}]
)
def test_another_request_is_refused(model, children, options):
    exporter.export(planned(model))
    with pytest.raises(HFPipeError, match="out exists and was made with other options") as caught:
        exporter.export(planned(model, **options))
    assert caught.value.exit_code == 1
    assert "--force" in caught.value.hint


def test_a_request_is_another_with_other_texts_or_another_state_of_the_model(model, children):
    text, options = model.parent / "text", {"weight_format": "int4", "calibration": model.parent / "text"}
    text.write_text("one")
    exporter.export(planned(model, **options))
    assert not exporter.export(planned(model, **options)).made
    text.write_text("two")
    with pytest.raises(HFPipeError, match="with other options"):
        exporter.export(planned(model, **options))
    text.write_text("one")
    with (model / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\1")
    with pytest.raises(HFPipeError, match="made of another model, or of another state of it"):
        exporter.export(planned(model, **options))


@pytest.mark.parametrize(
    "report", [None, "", "{", "[]", "{}", '{"format": 1}', '{"format": 2, "source": {}, "request": {}}'], ids=repr
)
def test_an_export_of_others_is_refused(model, children, report):
    output = model.parent / "out"
    output.mkdir()
    (output / "openvino_model.xml").write_text("old")
    if report is not None:
        (output / "hfpipe.json").write_text(report)
    with pytest.raises(HFPipeError, match="out exists and is not a finished export of this hfpipe"):
        exporter.export(planned(model))
    with pytest.raises(UsageError, match="out is not an export that hfpipe made, and stays as it is"):
        exporter.export(planned(model), force=True)
    assert (output / "openvino_model.xml").read_text() == "old"


@pytest.mark.parametrize("changed", [{"source": None}, {"source": {}}, {"source": [1]}, {"request": None}], ids=repr)
def test_a_report_that_someone_has_changed(model, children, changed):
    report = exporter.export(planned(model)).data
    (model.parent / "out" / "hfpipe.json").write_text(json.dumps({**report, **changed}))
    with pytest.raises(HFPipeError, match="out exists and "):
        exporter.export(planned(model))


@pytest.mark.parametrize("others", ["notes.txt", "sub/notes.txt", "sub/", "link"])
def test_force_removes_nothing_that_hfpipe_has_not_made(model, children, others):
    output = exporter.export(planned(model)).folder
    mine = output / others
    mine.parent.mkdir(exist_ok=True)
    if others.endswith("/"):
        mine.mkdir()
    elif others == "link":
        mine.symlink_to(model)
    else:
        mine.write_text("mine")
    with pytest.raises(UsageError, match=f"out also holds {others.rstrip('/')}, which hfpipe did not make"):
        exporter.export(planned(model, sym=True), force=True)
    assert mine.exists()
    assert not exporter.export(planned(model)).made


def test_what_comes_into_an_export_while_it_is_replaced_stays(model, children, monkeypatch):
    output = exporter.export(planned(model)).folder
    convert = exporter.run_export

    def slow(*arguments, **options):
        (output / "mine").write_text("mine")
        return convert(*arguments, **options)

    monkeypatch.setattr(exporter, "run_export", slow)
    with pytest.raises(UsageError, match="out also holds mine"):
        exporter.export(planned(model), force=True)
    assert (output / "mine").read_text() == "mine"
    assert names(model.parent) == ["model", "out"]


def keep(model, *, verify=True, **options):
    """The export in the cache, as bench asks for it."""
    options = ExportOptions(**{"weight_format": "int8", **options})
    reference = Reference(model, (), 1, "float32")
    source = models.resolve(str(model))
    return exporter.export_to_cache(source, options, (lambda: reference) if verify else None, Silent(), "int8")


@pytest.fixture
def kept(model, children):
    done = keep(model)
    children.asked.clear()
    return done


def test_in_the_cache_it_is_made_once(model, children):
    first = keep(model)
    assert first.folder.is_relative_to(Path(os.environ["HFPIPE_CACHE"]) / "exports")
    assert first.folder.name.startswith("model-ov-int8-")
    assert children.names == ["convert", "verify"]
    assert children.asked[1][1]["reference_folder"] == str(model)
    again = keep(model)
    assert (again.made, again.folder, again.data) == (False, first.folder, first.data)
    assert len(children.asked) == 2
    assert keep(model, sym=True).folder != first.folder
    assert [(entry.model, entry.format) for entry in store.entries()] == [(str(model), "int8")] * 2


def test_one_that_is_not_verified_is_another_but_a_verified_one_will_do(model, children):
    plain, verified = keep(model, verify=False), keep(model)
    assert (plain.verified, verified.verified) == (False, True)
    assert plain.folder != verified.folder
    assert keep(model, verify=False).folder == verified.folder


@pytest.mark.parametrize("what", ["hfpipe.json", "openvino_model.bin", "the model", "a package"])
def test_what_is_damaged_or_has_changed_is_made_anew(model, children, kept, monkeypatch, what):
    if what == "the model":
        (model / "config.json").write_text('{"model_type": "gpt2", "n_positions": 65}')
    elif what == "a package":
        monkeypatch.setattr(reports, "version", lambda package: "9.9")
    else:
        (kept.folder / what).write_text("{")
    assert exporter.export(planned(model)).data.get("copied") is None
    assert keep(model).made


def test_an_equal_one_in_the_cache_is_copied(model, children, kept):
    """With what its source is called here: the same files may have come in two ways."""
    notes, plan = Stages(model.parent / "out"), planned(model)
    plan = replace(plan, source=replace(plan.source, reference="org/model", revision="abc"))
    done = exporter.export(plan, reporter=notes)
    assert (children.names, done.made, done.folder) == ([], True, model.parent / "out")
    assert names(done.folder) == [name for name in names(kept.folder) if name != ".hfpipe-entry"]
    assert (done.folder / "openvino_model.bin").read_bytes() == b"weights"
    assert notes.notes == [
        "Copying an equal export from the cache, where bench has made it. Force (--force) makes it anew."
    ]
    source = {**kept.data["source"], "model": "org/model", "revision": "abc"}
    files = {**kept.data["files"], "README.md": store.digest(done.folder / "README.md")}
    said = {"source": source, "files": files, "copied": done.data["copied"], "size": store.size_of(done.folder)}
    assert done.data == {**kept.data, **said}
    assert "base_model: org/model\n" in (done.folder / "README.md").read_text(), "its card is not that of the other"
    assert json.loads((done.folder / "hfpipe.json").read_text()) == done.data
    assert not exporter.export(planned(model)).made
    assert names(model.parent) == ["model", "out"]
    assert "copied" not in exporter.export(planned(model), force=True).data
    assert children.names == ["convert", "score", "verify"]


def test_a_copy_that_is_interrupted_leaves_nothing(model, children, kept, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("shutil.copyfile", interrupt)
    with pytest.raises(KeyboardInterrupt):
        exporter.export(planned(model))
    assert names(model.parent) == ["model"]


@pytest.mark.parametrize("force", [False, True])
def test_what_is_no_export_and_the_model_itself_stay(model, children, force):
    """Also where it lies inside of an export."""
    (model.parent / "file").write_text("mine")
    (model.parent / "folder").mkdir()
    (model.parent / "folder" / "mine").write_text("")
    for output in ("file", "folder"):
        with pytest.raises(UsageError if force else HFPipeError):
            exporter.export(planned(model, output), force=force)
    assert (model.parent / "file").read_text() == "mine"
    assert names(model.parent / "folder") == ["mine"]
    with pytest.raises(UsageError, match=r"holds .*, and stays as it is"):
        exporter.export(planned(model, "model"), force=force)
    outer = model.parent / "outer"
    outer.mkdir()
    (outer / "openvino_model.xml").write_text("old")
    model = model.rename(outer / "model")
    plan = replace(planned(model), output=outer)
    with pytest.raises(UsageError, match=r"holds .*, and stays as it is"):
        exporter.export(plan, force=force)
    assert (model / "model.safetensors").exists()
    assert children.names == []


@pytest.mark.parametrize("failing", ["convert", "verify"])
def test_a_failure_leaves_what_was_there(model, children, failing):
    children.failing = {failing}
    with pytest.raises(ConversionError):
        exporter.export(planned(model))
    assert names(model.parent) == ["model"]
    children.failing = set()
    exporter.export(planned(model))
    children.failing = {failing}
    with pytest.raises(ConversionError):
        exporter.export(planned(model, sym=True), force=True)
    assert not exporter.export(planned(model)).made
    assert names(model.parent) == ["model", "out"]


def test_a_source_that_cannot_be_scored_is_a_warning(model, children):
    children.failing = {"score"}
    done = exporter.export(planned(model))
    assert done.data["warnings"] == ["Not compared with its source, which could not be scored: score failed"]
    reference, verification = children.asked[1][1], children.asked[2][1]
    assert verification["reference_folder"] is None
    assert not reference.exists()


def test_what_a_killed_export_was_about_to_replace_is_asked_about(model, children):
    """It had been given --force; this one has not."""
    exporter.export(planned(model))
    work = model.parent / ".out.hfpipe-tmp"
    work.mkdir()
    (model.parent / "out").rename(work / "old")
    with pytest.raises(HFPipeError, match="made with other options"):
        exporter.export(planned(model, sym=True))
    assert names(model.parent) == ["model", "out"]
    assert not exporter.export(planned(model)).made


def test_a_disk_that_takes_nothing_is_named_with_what_helps(model, children, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("hfpipe.machine.free_disk", lambda folder: 1)
        with pytest.raises(HFPipeError) as caught:
            keep(model)
    assert caught.value.hint == "Free some space, or set HFPIPE_CACHE to another folder."

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(exporter, "run_export", full)
    with pytest.raises(HFPipeError, match=f"^The disk of {model.parent} is full") as caught:
        exporter.export(planned(model))
    assert caught.value.hint == "Free some space, or choose another output folder, and run it again."
    with pytest.raises(HFPipeError, match=r"^The disk of .*exports is full") as caught:
        keep(model)
    assert caught.value.hint == "Free some space, or set HFPIPE_CACHE to another folder, and run it again."
    assert names(model.parent) == ["model"]


# In Python


def test_the_example_of_its_docstring(tiny_llama, tmp_path, children):
    run = doctest.DocTestFinder().find(hfpipe.export.run, "export", globs={"model": tiny_llama, "folder": tmp_path})
    assert [doctest.DocTestRunner().run(one) for one in run] == [doctest.TestResults(failed=0, attempted=3)]
    assert children.names == ["convert"]


def test_the_options_are_those_that_python_may_be_given():
    assert list(Options.__annotations__) == [field.name for field in fields(ExportOptions)]


def test_an_export_in_python(model, children):
    report = hfpipe.export(model, model.parent / "out", weight_format="int4", data_free=True)
    assert (report.made, report.verified, report.warnings) == (True, True, ())
    with pytest.raises(TypeError, match="bits"):
        hfpipe.export(model, bits=4)
    with pytest.raises(UsageError, match="awq needs weight_format int4"):
        hfpipe.export(model, awq=True)
