"""Real models: torch as the reference, OpenVINO against it."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import openvino as ov
import pytest
import torch
from openvino import opset13 as ops

from hfpipe import models, quality
from hfpipe.backends.openvino import tuning
from hfpipe.errors import BackendError, UnsupportedModel, UsageError
from hfpipe.models.folder import inspect_folder
from hfpipe.quality import score_openvino, score_torch
from hfpipe.quality.compare import Window, read_reference
from hfpipe.types import LoadOptions, Silent
from tests import tiny

TEXTS = {"prose": " ".join(tiny.SENTENCES * 4), "code": "print('x')\n" * 60}


class Progress(Silent):
    def __init__(self):
        self.steps = []

    def progress(self, task, done, total, unit="bytes"):
        self.steps.append((task, done, total, unit))


def reference_of(model: Path, folder: Path, **more):
    arguments = {
        "reference": "tiny",
        "source": str(model),
        "folder": str(folder),
        "dtype": "float32",
        "texts": TEXTS,
        "trust_remote_code": False,
        "allow_pickle": False,
    }
    score_torch.main(arguments | more, more.pop("reporter", Silent()))
    return read_reference(folder)


def score(folder, reference, *, reporter=None, **options):
    source = SimpleNamespace(folder=folder)
    return score_openvino.score(source, LoadOptions(**options), reference, reporter or Silent())


@pytest.fixture(scope="module")
def reference(tiny_llama, tmp_path_factory):
    return reference_of(tiny_llama, tmp_path_factory.mktemp("reference"))


@pytest.mark.parametrize("model", ["tiny_gpt2", "tiny_llama"])
def test_an_exact_export_has_changed_nothing(request, tmp_path, model):
    """In float32 throughout: whatever differs is rounding."""
    source, export = request.getfixturevalue(model), request.getfixturevalue(model + "_ov")
    reference = reference_of(source, tmp_path)
    assert reference.dtype == "float32"
    assert reference.vocabulary == tiny.VOCABULARY
    found = score(export, reference, exact=True)
    assert found.tokens == reference.tokens > 500
    assert found.mean_kl < 1e-6
    assert found.same_top == 1
    assert abs(found.perplexity_change) < 1e-4
    assert set(found.kinds) == set(TEXTS)
    if model == "tiny_gpt2":
        assert max(len(window.token_ids) for window in reference.windows) == 128
        assert {window.scored_from for window in reference.windows} == {1, 32}


def test_the_reference_is_what_transformers_says_of_whole_windows(tiny_llama, reference):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
    for window, rows in reference.scored():
        with torch.inference_mode():
            logits = model(torch.tensor([window.token_ids])).logits[0, window.scored_from - 1 : -1]
        expected = logits.log_softmax(dim=-1).numpy()
        np.testing.assert_allclose(rows.astype(np.float32), expected, rtol=1e-3, atol=1e-3)


def test_a_reference_in_another_dtype_and_progress_that_counts_tokens(tiny_llama, tiny_llama_ov, tmp_path):
    progress = Progress()
    reference = reference_of(tiny_llama, tmp_path, dtype="bfloat16", reporter=progress)
    assert reference.dtype == "bfloat16"
    assert score(tiny_llama_ov, reference, exact=True, reporter=progress).mean_kl > 1e-6
    for task in ("Scoring tiny", f"Scoring {tiny_llama_ov.name}"):
        steps = [step for step in progress.steps if step[0] == task]
        assert steps[0][1:] == (0, reference.tokens, "steps")
        assert steps[-1][1:] == (reference.tokens, reference.tokens, "steps")
        assert [step[1] for step in steps] == sorted({step[1] for step in steps})


@pytest.mark.parametrize(
    ("options", "least", "most"),
    [
        (LoadOptions(backend="torch", dtype="float32"), 0, 1e-6),
        (LoadOptions(backend="torch", dtype="bfloat16"), 1e-6, 1),
        (LoadOptions(backend="openvino", exact=True), 0, 1e-6),
        (LoadOptions(backend="openvino", ov_config={"INFERENCE_PRECISION_HINT": "bf16"}), 1e-6, 1),
    ],
    ids=["torch", "torch in bfloat16", "openvino", "openvino in bfloat16"],
)
def test_a_model_as_a_backend_loads_it(tiny_llama, tiny_llama_ov, reference, options, least, most):
    folder = tiny_llama if options.backend == "torch" else tiny_llama_ov
    found = quality.compare_source(models.resolve(str(folder)), options, reference)
    assert least <= found.mean_kl < most
    assert set(found.kinds) == set(TEXTS)
    assert found.kinds["prose"].tokens < found.tokens == reference.tokens


def test_what_this_machine_runs_it_best_with_is_what_is_compared(tiny_llama_ov, reference, monkeypatch):
    with pytest.raises(UsageError, match="OpenVINO on CPU"):
        score(tiny_llama_ov, reference, ov_config={"NO_SUCH": "1"})
    monkeypatch.setattr(tuning, "known", lambda *_: {"chat": tuning.Choice({"NO_SUCH": "1"})})
    with pytest.raises(UsageError, match="NO_SUCH"):
        score(tiny_llama_ov, reference)


# What models may lack


def test_a_model_that_gives_all_logits_or_an_error():
    """No logits_to_keep: those of the targets are the last. An error of torch is one line."""

    class Model(torch.nn.Module):
        def forward(self, input_ids, attention_mask, use_cache, return_dict):
            return SimpleNamespace(logits=torch.nn.functional.one_hot(input_ids, 9).bfloat16())

    logits = score_torch.window_logits(Model(), Window("x", (1, 2, 3, 4), 2))
    assert logits.dtype == np.float32
    assert logits.argmax(axis=1).tolist() == [2, 3]
    Model.forward = lambda self, input_ids, **_: torch.nn.Embedding(2, 2)(input_ids)
    with pytest.raises(BackendError, match="IndexError"):
        score_torch.window_logits(Model(), Window("x", (1, 2, 3, 4), 2))


def stateless(folder: Path, *names: str) -> Path:
    """A model whose next token is most likely the last one."""
    inputs = [ops.parameter([-1, -1], np.int64, name=name) for name in names]
    for port in inputs:
        port.output(0).get_tensor().set_names({port.get_friendly_name()})
    logits = ops.one_hot(inputs[0], np.int64(tiny.VOCABULARY), np.float32(9), np.float32(0), axis=-1)
    logits.output(0).get_tensor().set_names({"logits"})
    ov.save_model(ov.Model([logits], inputs, "m"), folder / "openvino_model.xml", compress_to_fp16=False)
    return folder


def test_a_model_without_positions_or_state_and_one_with_other_inputs(tmp_path, reference):
    found = score(stateless(tmp_path, "input_ids"), reference)
    assert found.tokens == reference.tokens
    assert found.mean_kl > 0.1
    with pytest.raises(UnsupportedModel, match="takes pixel_values, and cannot"):
        score(stateless(tmp_path, "input_ids", "pixel_values"), reference)


def test_a_model_that_computes_no_numbers(tmp_path, tiny_llama_ov):
    score_openvino.check_numbers(inspect_folder(tiny_llama_ov, "tiny"), (1, 2, 3))
    token_ids = ops.parameter([-1, -1], np.int64, name="input_ids")
    token_ids.output(0).tensor.names = {"input_ids"}
    some = ops.convert(ops.unsqueeze(token_ids, np.int64(2)), np.float32)
    logits = ops.multiply(ops.add(some, np.zeros((1, 1, 8), np.float32)), np.float32("nan"))
    logits.output(0).tensor.names = {"logits"}
    ov.save_model(ov.Model([logits], [token_ids]), tmp_path / "openvino_model.xml")
    with pytest.raises(BackendError, match="NaN"):
        score_openvino.check_numbers(replace(inspect_folder(tiny_llama_ov, "tiny"), folder=tmp_path), (1, 2, 3))
