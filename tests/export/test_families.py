"""Real models of several families: they are exported, answer, and are what they were."""

import json
import math
from pathlib import Path

import pytest

from hfpipe.backends.openvino.loading import weight_shares
from hfpipe.process import run_child
from tests import tiny
from tests.conftest import once
from tests.export.families import ODD, OTHER_FORMATS, SEQ2SEQ


@pytest.fixture(scope="module")
def exports():
    """By family and format: folder, report, estimate, answer."""

    def export(kept):
        folder = kept.with_suffix("")
        folder.mkdir()
        made = run_child("tests.export.families", {"folder": str(folder)}, what="The exports")
        kept.write_text(json.dumps(made))

    return json.loads(once("families.json", export).read_text())


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_in_its_own_precision_it_is_what_it_was(exports, family):
    report = exports[family]["fp32"]["report"]
    quality = report["quality"]
    assert quality["tokens"] > 500
    assert quality["mean_kl"] < 1e-3
    assert quality["same_top"] > 0.95
    assert abs(quality["perplexity_change"]) < 0.01
    assert report["answer"]["text"]
    assert report["tokenizer"] == {"missing": [], "differing": []}
    assert report["warnings"] == []
    assert report["weights"] == {"float32": 1.0}


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_int4_is_in_4_bits_but_for_its_tables_and_its_size_was_foretold(exports, family):
    for form, least in (("int4", 0.25), (ODD, 0.15)):
        if made := exports[family].get(form):
            assert made["answer"]
            shares = weight_shares(Path(made["folder"]))
            assert math.isclose(sum(shares.values()), 1)
            assert set(shares) <= {"int4", "int8", "float32", "float16"}
            assert shares["int4"] > least
            assert shares.get("float32", 0) + shares.get("float16", 0) < 0.01
    for export in exports[family].values():
        size = (Path(export["folder"]) / "openvino_model.bin").stat().st_size
        assert export["estimate"] == pytest.approx(size, rel=0.05)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_int4_is_rounded_by_hfpipe_and_is_nearly_what_it_was(exports, family):
    """Were its numbers not where they belong, nothing would be left of the model."""
    report = exports[family]["int4"]["report"]
    assert report["request"]["rounded_by"] == "hfpipe"
    assert "made_with" not in report
    assert report["calibration"] == "built-in"
    assert 0 < report["quality"]["mean_kl"] < 0.02


@pytest.mark.parametrize("weight_format", OTHER_FORMATS)
def test_other_formats_of_4_bits_run_and_are_verified(exports, weight_format):
    """Their weights are named, none of them stays a float."""
    report = exports["llama"][weight_format]["report"]
    precision = {"mxfp4": "fp4"}.get(weight_format, weight_format)
    assert set(report["weights"]) <= {precision, "int8", "float32"}
    assert report["weights"][precision] > 0.2
    assert report["weights"].get("float32", 0) < 0.01
    assert report["weight_format"] == weight_format
    assert report["calibration"] == (None if weight_format == "mxfp4" else "built-in")
    assert 0 < report["quality"]["mean_kl"] < 0.5
    assert exports["llama"][weight_format]["answer"]


@pytest.mark.parametrize("family", SEQ2SEQ)
def test_an_encoder_decoder_model_answers_as_its_source(exports, family):
    """Measured on answers of the source, token by token."""
    report = exports[family]["fp32"]["report"]
    assert report["quality"]["tokens"] > 100
    assert report["quality"]["mean_kl"] < 1e-3
    assert report["quality"]["same_top"] > 0.95
    assert report["tokenizer"]["missing"] == report["warnings"] == []
    assert report["weights"] == {"float32": 1.0}
    for export in exports[family].values():
        assert export["answer"]
        weights = Path(export["folder"]).glob("openvino_??coder_model.bin")
        assert export["estimate"] == pytest.approx(sum(path.stat().st_size for path in weights), rel=0.1)
    shares = weight_shares(Path(exports[family]["int4"]["folder"]))
    assert shares["int4"] > 0
    assert shares["int4"] + shares["int8"] > 0.9
