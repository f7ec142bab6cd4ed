"""Exports for a benchmark: made once, kept in the cache."""

from types import SimpleNamespace

import pytest

from hfpipe import models
from hfpipe.bench import exports as module
from hfpipe.bench.exports import Exports
from hfpipe.export import Report
from hfpipe.export import report as reports
from hfpipe.types import LoadOptions, Silent
from tests.fake_models import write_model

SOME = SimpleNamespace(of=lambda source: source.reference)


@pytest.fixture
def made(monkeypatch, tmp_path):
    """How the exporter was called."""
    calls = []

    def export(plan, *, verify, reference, **_):
        calls.append((plan.weight_format, reference() if reference else None))
        plan.output.mkdir(parents=True, exist_ok=True)
        (plan.output / "openvino_model.bin").write_bytes(b"weights")
        report = reports.describe(plan, plan.output) | ({"answer": {}} if verify else {})
        reports.write(report, plan.output)
        return Report(plan.output, report)

    monkeypatch.setenv("HFPIPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module.exporter, "export", export)
    return calls


def make(folder, references=SOME, weight_format="int8"):
    return Exports(references).make(models.resolve(str(folder)), weight_format, LoadOptions(), Silent())


def test_an_export_is_made_once(made, tmp_path):
    model = write_model(tmp_path / "model")
    first, again = make(model), make(model)
    assert (first.made, again.made) == (True, False)
    assert (first.folder, first.data) == (again.folder, again.data)
    assert make(model, weight_format="fp16").folder != first.folder
    assert made == [("int8", str(model)), ("fp16", str(model))]


def test_one_that_is_not_verified_is_another_but_a_verified_one_will_do(made, tmp_path):
    model = write_model(tmp_path / "model")
    plain, verified = make(model, None), make(model)
    assert (plain.verified, verified.verified) == (False, True)
    assert plain.folder != verified.folder
    assert make(model, None).folder == verified.folder
    assert made == [("int8", None), ("int8", str(model))]


def test_a_broken_one_is_made_anew(made, tmp_path):
    model = write_model(tmp_path / "model")
    (make(model).folder / "openvino_model.bin").write_bytes(b"damaged")
    assert make(model).made
    assert not make(model).made
    assert made == [("int8", str(model)), ("int8", str(model))]
