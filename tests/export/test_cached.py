"""Exports in the cache: where they stand, and which of them is what is asked for."""

import json

import pytest

from hfpipe import models
from hfpipe.errors import HFPipeError
from hfpipe.export import ExportOptions
from hfpipe.export import report as reports
from hfpipe.export.exporter import find, plan_to_cache
from hfpipe.export.plan import make_plan
from tests.fake_models import write_model


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.setenv("HFPIPE_CACHE", str(tmp_path / "cache"))
    return write_model(tmp_path / "model")


def planned(model, **options):
    """One for a folder of the user's."""
    options = ExportOptions(**{"weight_format": "int8", **options})
    return make_plan(models.resolve(str(model)), model.parent / "mine", options, verify=False)


def keep(model, *, verified=True, **options):
    """Have an export stand in the cache."""
    options = ExportOptions(**{"weight_format": "int8", **options})
    plan = plan_to_cache(models.resolve(str(model)), options, verify=verified)
    plan.output.mkdir(parents=True)
    (plan.output / "openvino_model.bin").write_bytes(b"weights")
    reports.write(reports.describe(plan, plan.output) | ({"answer": {}} if verified else {}), plan.output)
    return plan.output


def found(model, *, verify=True, **options):
    kept = find(planned(model, **options), verify=verify)
    return kept and kept.folder


def test_it_is_found_by_what_it_is(model, tmp_path):
    assert found(model) is None
    kept = keep(model)
    assert kept.is_relative_to(tmp_path / "cache" / "exports")
    assert kept.name.startswith("model-ov-int8-")
    assert found(model) == kept
    assert find(planned(model), verify=True).data == json.loads((kept / "hfpipe.json").read_text())
    assert found(model, sym=True) is None
    assert found(model, weight_format="fp16") is None


def test_one_that_is_verified_is_also_found_where_that_is_not_asked_for(model):
    plain = keep(model, verified=False)
    assert found(model) is None
    assert found(model, verify=False) == plain
    verified = keep(model)
    assert found(model) == found(model, verify=False) == verified
    assert verified != plain


@pytest.mark.parametrize("damaged", ["hfpipe.json", "openvino_model.bin"])
def test_one_that_is_damaged_is_not_found(model, damaged):
    (keep(model) / damaged).write_text("{")
    assert found(model) is None


def test_another_state_of_the_model_has_none(model):
    keep(model)
    (model / "config.json").write_text(json.dumps(json.loads((model / "config.json").read_text()) | {"more": 1}))
    assert found(model) is None


def test_another_version_of_a_package_makes_it_anew(model, monkeypatch):
    keep(model)
    monkeypatch.setattr(reports, "version", lambda package: "9.9")
    assert found(model) is None


def test_where_the_disk_is_full_another_cache_is_what_helps(model, monkeypatch):
    source, options = models.resolve(str(model)), ExportOptions("int8")
    assert plan_to_cache(source, options, verify=True).variable == "HFPIPE_CACHE"
    monkeypatch.setattr("hfpipe.machine.free_disk", lambda folder: 1)
    with pytest.raises(HFPipeError) as caught:
        plan_to_cache(source, options, verify=True)
    assert caught.value.hint == "Free some space, or set HFPIPE_CACHE to another folder."
