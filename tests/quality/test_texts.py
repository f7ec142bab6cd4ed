"""The texts that come with the package, and how much work a model's reference is worth."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from hfpipe import quality as texts
from hfpipe.models.folder import inspect_folder
from tests.fake_models import write_model


def test_there_are_texts_of_several_kinds():
    assert {"code", "dialogue", "prose", "technical"} <= set(texts.held_out()) & set(texts.calibration())
    for kinds in (texts.held_out(), texts.calibration()):
        assert list(kinds) == sorted(kinds)
        assert all(len(text) > 1000 for text in kinds.values())


def test_nothing_that_is_measured_on_is_calibrated_on():
    assert paragraphs(texts.held_out()) & paragraphs(texts.calibration()) == set()


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_a_share_of_the_text_is_whole_paragraphs_from_its_beginning(share):
    whole, part = texts.held_out(), texts.held_out(share)
    assert list(part) == list(whole)
    for kind, text in part.items():
        assert whole[kind].startswith(text + "\n\n")
        assert share * len(whole[kind]) <= len(text) <= share * len(whole[kind]) + 2000


def paragraphs(kinds):
    """Those that are long enough not to be the same by chance."""
    parts = {part.strip() for text in kinds.values() for part in text.split("\n\n")}
    return {part for part in parts if len(part) > 60}


# The work


BYTES = {"float32": np.float32, "bfloat16": np.uint16}


def written(folder, dtype):
    write_model(folder, model_type="llama", vocab_size=8, dtype=dtype)
    save_file({"model.embed_tokens.weight": np.zeros((8, 4096), BYTES[dtype])}, folder / "model.safetensors")
    return inspect_folder(folder, dtype)


@pytest.fixture
def models(tmp_path):
    return {dtype: written(tmp_path / dtype, dtype) for dtype in BYTES}


def test_the_parameters_of_a_model_do_not_depend_on_its_dtype(models):
    one, other = map(texts.parameters, models.values())
    assert one == pytest.approx(other, rel=0.02)


def test_a_source_is_scored_in_float32_where_there_is_time_and_memory_for_it(models, monkeypatch):
    assert {name: texts.reference_dtype(one) for name, one in models.items()} == dict.fromkeys(models, "float32")
    expected = {"float32": "float32", "bfloat16": "bfloat16"}
    with monkeypatch.context() as patch:
        patch.setattr(texts, "available_memory", lambda: 0)
        assert {name: texts.reference_dtype(one) for name, one in models.items()} == expected
    monkeypatch.setattr(texts, "_LARGE", 1)
    assert {name: texts.reference_dtype(one) for name, one in models.items()} == expected


def test_of_a_large_model_less_text_is_scored(models, monkeypatch, tmp_path):
    def scored():
        texts.make_reference(models["float32"], tmp_path)
        return asked["texts"]

    asked = {}
    monkeypatch.setattr(texts, "run_child", lambda module, arguments, **_: asked.update(arguments))
    monkeypatch.setattr(texts, "read_reference", lambda folder: None)
    assert scored() == texts.held_out()
    for large, share in ((texts.parameters(models["float32"]) / 2, 0.5), (1, 0.1)):
        monkeypatch.setattr(texts, "_LARGE", large)
        assert scored() == texts.held_out(share)
