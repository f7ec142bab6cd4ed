"""How much work a model's reference is worth."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from hfpipe.models.folder import inspect_folder
from hfpipe.quality import texts as effort
from hfpipe.quality.texts import held_out_share, parameters, reference_dtype
from tests.fake_models import write_model

BYTES = {"float32": np.float32, "bfloat16": np.uint16}


def written(folder, dtype):
    write_model(folder, model_type="llama", vocab_size=8, dtype=dtype)
    save_file({"model.embed_tokens.weight": np.zeros((8, 4096), BYTES[dtype])}, folder / "model.safetensors")
    return inspect_folder(folder, dtype)


@pytest.fixture
def models(tmp_path):
    return {dtype: written(tmp_path / dtype, dtype) for dtype in BYTES}


def test_the_parameters_of_a_model_do_not_depend_on_its_dtype(models):
    one, other = map(parameters, models.values())
    assert one == pytest.approx(other, rel=0.02)


def test_a_source_is_scored_in_float32_where_there_is_time_and_memory_for_it(models, monkeypatch):
    assert {name: reference_dtype(one) for name, one in models.items()} == dict.fromkeys(models, "float32")
    expected = {"float32": "float32", "bfloat16": "bfloat16"}
    with monkeypatch.context() as patch:
        patch.setattr(effort, "available_memory", lambda: 0)
        assert {name: reference_dtype(one) for name, one in models.items()} == expected
    monkeypatch.setattr(effort, "_LARGE", 1)
    assert {name: reference_dtype(one) for name, one in models.items()} == expected


def test_of_a_large_model_less_text_is_scored(models, monkeypatch):
    model = models["float32"]
    assert held_out_share(model) == 1
    monkeypatch.setattr(effort, "_LARGE", parameters(model) / 2)
    assert held_out_share(model) == 0.5
    monkeypatch.setattr(effort, "_LARGE", 1)
    assert held_out_share(model) == 0.1
