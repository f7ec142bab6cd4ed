"""hfpipe.json, what is read from it again, and what is printed of it."""

import hashlib
import shlex
from dataclasses import replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import pytest

from hfpipe import models
from hfpipe.cli.export import plan_as_text, result
from hfpipe.export import ExportOptions, Report
from hfpipe.export import report as reports
from hfpipe.export.plan import make_plan
from hfpipe.export.quantization import Layer
from hfpipe.store import identity
from tests.fake_models import write_model

WHOLE = {"missing": [], "differing": []}
FILES = {"b.bin": b"de", "openvino_model.bin": b"abc", "openvino_model.xml": b"<xml/>"}


@pytest.fixture
def model(tmp_path):
    return write_model(tmp_path / "model", vocab_size=8)


@pytest.fixture
def export(tmp_path):
    """A folder with what an exporter leaves."""
    folder = tmp_path / "out"
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    return folder


def plan(model, weight_format="int8", **options):
    return make_plan(models.resolve(str(model)), model.parent / "out", ExportOptions(weight_format, **options))


def warned(plan, **measured):
    return list(reports.warnings({"tokenizer": WHOLE, **measured}, plan))


# The file


def test_what_an_export_was_made_of_is_written_and_read(model, export):
    made = reports.describe(plan(model), export)
    assert made["source"] == {"model": str(model), "revision": None, "sha256": identity(model)}
    assert made["weight_format"] == "int8"
    assert made["request"] == plan(model).request()
    assert made["calibration"] is None
    assert made["optimum_cli"][-1] == "OUTPUT"
    assert made["versions"]["openvino"] == version("openvino")
    assert {"hfpipe", "optimum-intel", "nncf", "transformers", "torch"} < set(made["versions"])
    assert datetime.fromisoformat(made["created"]).utcoffset() is not None
    assert made["files"] == {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}
    assert made["size"] == 11
    made = {**made, "answer": {"prompt": "a", "text": "é\x1b\n🙂"}}
    made = reports.write(made, export, "out")
    assert reports.read(export) == made
    assert "é" in (export / "hfpipe.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "text", [None, "", "[1]", "{}", '{"format": 1, "source": {}, "request": {}, "files": {}}', "[" * 100_000, "\xff"]
)
def test_what_hfpipe_has_not_written_is_no_report(tmp_path, text):
    if text is not None:
        (tmp_path / "hfpipe.json").write_text(text, encoding="latin-1")
    assert reports.read(tmp_path) is None


# Warnings


def test_only_what_is_much_worse_is_said(model):
    assert warned(plan(model)) == []
    for change in (-0.5, 0.0, 0.1):
        assert warned(plan(model), quality={"perplexity_change": change}) == []
    (line,) = warned(plan(model), quality={"perplexity_change": 0.25})
    assert line == "This export is much worse than its source: +25.0% perplexity. Try --weight-format fp16."
    (line,) = warned(plan(model), quality={"perplexity_change": 1e27})
    assert "source: over +100,000% perplexity." in line


@pytest.mark.parametrize(
    ("weight_format", "advice"),
    [
        ("fp32", "It is not quantized"),
        ("fp16", "Try --weight-format fp32"),
        ("int4", "Try --weight-format int8, --cal"),
        ("nf4", "Try --weight-format int8, --cal"),
        ("mxfp4", "Try --weight-format int8 or int4, or a smaller --ratio."),
    ],
)
def test_the_advice_has_more_bits_where_there_are_any(model, weight_format, advice):
    (line,) = warned(plan(model, weight_format), quality={"perplexity_change": 0.25})
    assert f" perplexity. {advice}" in line


def test_a_tokenizer_that_is_missing_or_another_one(model):
    missing = {"missing": ["openvino_tokenizer.xml"]}
    (line,) = warned(plan(model), tokenizer=missing)
    assert line.startswith("OpenVINO's own tokenizer is missing: ")
    assert warned(plan(model, extra=("--disable-convert-tokenizer",)), tokenizer=missing) == []
    # A difference in one kind of text is usual.
    assert warned(plan(model), tokenizer={"missing": [], "differing": ["dialogue"]}) == []
    (line,) = warned(plan(model), tokenizer={"missing": [], "differing": ["code", "prose"]})
    assert line.startswith("OpenVINO's own tokenizer gives other ids: ")


# What is printed

KIND = {"perplexity_change": 0.01}
REPORT = {
    "size": 123_456_789,
    "weights": {"int4": 0.7512, "int8": 0.2488},
    "quality": {
        "perplexity": 18.54,
        "reference_perplexity": 18.44,
        "perplexity_change": 0.0054,
        "perplexity_change_error": 0.002,
        "same_top": 0.981,
        "mean_kl": 0.0123,
        "kinds": {"code": KIND, "prose": KIND},
    },
    "answer": {"prompt": "The capital", "text": " of\nFrance \x1b[31mis"},
    "tokenizer": WHOLE,
    "seconds": {"export": 12.3, "verification": 45.6},
    "peak_memory": 1_800_000_000,
}


def printed(made=True, **changes):
    return result(Report(Path("/models/out"), {**REPORT, **changes}, made))


def test_a_result_in_words():
    rows = printed()
    assert rows["export"] == "/models/out"
    assert rows["size"] == "123 MB"
    assert rows["weights"] == "75.1% int4, 24.9% int8"
    assert rows["perplexity"] == "18.54, the source's 18.44: +0.5% (±0.2%)"
    assert rows["of it"] == "code +1.0%, prose +1.0%"
    assert rows["next token"] == "equal for 98.1%; KL divergence 0.0123"
    assert "same ids" in rows["tokenizer"]
    assert "12 s" in rows["time"]
    assert "1.8 GB" in rows["time"]
    assert rows["answer"] == r"The capital of France \x1b[31mis", "in one line, and not obeyed"
    assert printed(made=False)["export"] == "/models/out, which exists already: nothing to do"


@pytest.mark.parametrize(
    ("folder", "typed"), [("out", "out"), ("a/my out", "'a/my out'"), ("../out", "{above}/out"), ("/x/out", "/x/out")]
)
def test_the_command_that_runs_it_can_be_typed(tmp_path, monkeypatch, folder, typed):
    monkeypatch.chdir(tmp_path)
    rows = result(Report((tmp_path / folder).resolve(), REPORT))
    assert rows["run it"] == f'hfpipe run {typed.format(above=tmp_path.parent)} "..."'


def test_the_command_names_the_language_that_a_model_needs():
    assert printed(needs_target_lang=True)["run it"] == 'hfpipe run /models/out --target-lang LANG "..."'
    assert printed(needs_target_lang=False)["run it"] == 'hfpipe run /models/out "..."'


def test_a_perplexity_of_noise_is_a_short_number():
    noise = {**REPORT["quality"], "perplexity": 2.3e28, "perplexity_change": 1.2e27, "perplexity_change_error": 1e20}
    assert printed(quality=noise)["perplexity"] == "2.3e+28, the source's 18.44: over +100,000%"


def test_what_was_not_measured_is_left_out():
    measured = ("weights", "quality", "answer", "tokenizer")
    rows = result(Report(Path("out"), {key: value for key, value in REPORT.items() if key not in measured}))
    assert set(rows) == {"export", "size", "time", "run it"}
    assert "±" not in printed(quality={**REPORT["quality"], "perplexity_change_error": None})["perplexity"]


@pytest.mark.parametrize(
    ("tokenizer", "words"),
    [
        ({"missing": ["openvino_tokenizer.xml"]}, "OpenVINO's own is missing"),
        ({"missing": [], "differing": ["code", "prose"]}, "other ids (code, prose text)"),
    ],
)
def test_what_is_wrong_with_openvinos_own_tokenizer(tokenizer, words):
    assert words in printed(tokenizer=tokenizer)["tokenizer"]


def test_a_plan_in_words(model):
    model = model.rename(model.parent / "my model")
    rows = plan_as_text(plan(model, "int4"))
    assert rows["model"] == str(model)
    assert rows["output"] == str(model.parent / "out")
    assert rows["weights"] == "int4"
    assert rows["calibration"].endswith(" samples")
    rounded = replace(plan(model, "int4"), rounded=(Layer("a", 64, 64),))
    assert plan_as_text(rounded)["calibration"] == rows["calibration"] + ", and what the model writes"
    assert rows["command"].startswith("optimum-cli export openvino --model ")
    assert shlex.split(rows["command"])[4] == str(model)
    assert rows["command"].endswith(f" {model.parent / 'out'}")
    assert {"size", "disk", "memory", "time"} < set(rows)
    assert "calibration" not in plan_as_text(plan(model, "fp16"))
    assert plan_as_text(plan(model, "int4", data_free=True))["calibration"] == "none"
