"""How far configurations are from their source."""

import re
from dataclasses import replace

import pytest

from hfpipe import models, quality
from hfpipe.bench import quality as module
from hfpipe.bench import references
from hfpipe.bench.candidates import Candidate
from hfpipe.bench.quality import Judge
from hfpipe.bench.references import References
from hfpipe.bench.report import Configuration
from hfpipe.errors import BackendError, UnsupportedModel
from hfpipe.quality import Reference
from hfpipe.quality.windows import Window
from hfpipe.types import LoadOptions, Silent
from tests import tiny
from tests.tiny_exports import in_this_process

TEXTS = {"prose": " ".join(tiny.SENTENCES * 12)}


@pytest.fixture(autouse=True)
def short(monkeypatch, tmp_path):
    """Few answers; references are made in a folder of the test."""
    monkeypatch.setattr(module, "_PROMPTS", 3)
    monkeypatch.setattr(module, "_ANSWER_TOKENS", 8)
    monkeypatch.setattr(references, "cache_root", lambda: tmp_path)


@pytest.fixture(autouse=True)
def torch_in_this_process(monkeypatch):
    """It takes seconds to import; what runs on OpenVINO has its process."""
    run_child = module.run_child

    def run(child, arguments, **more):
        if arguments.get("loading", {}).get("backend") == "openvino":
            return run_child(child, arguments, **more)
        return in_this_process(child, arguments)

    monkeypatch.setattr(module, "run_child", run)
    monkeypatch.setattr(quality, "run_child", run)


def judged(given, texts=TEXTS):
    """What could not be measured, or is worth little."""
    complaints = []
    with References(LoadOptions(), Silent()) as made:
        Judge(made, Silent(), complaints.append, texts).measure(given)
    return complaints


def candidate(folder, origin, backend, **loading):
    row = Configuration(backend, "m", backend, None, (), ())
    source = models.resolve(str(folder))
    return Candidate(row, source, LoadOptions(backend=backend, **loading), origin and models.resolve(str(origin)))


def test_what_is_exact_and_what_is_not(tiny_llama, tiny_llama_ov, tmp_path):
    given = [
        candidate(tiny_llama, tiny_llama, "torch", exact=True),
        candidate(tiny_llama_ov, tiny_llama, "openvino", exact=True),
        candidate(tiny_llama, tiny_llama, "torch", dtype="bfloat16"),
    ]
    assert judged(given) == []
    torch, openvino, bfloat16 = (one.row.quality for one in given)
    for one in (torch, openvino):
        assert (one.same_answers, one.answers, one.first_divergence, one.answer_tokens) == (3, 3, 8, 8)
        assert one.same_top == 1
        assert one.mean_kl < 1e-6
        assert one.perplexity == pytest.approx(one.reference_perplexity, rel=1e-4)
    assert bfloat16.mean_kl > 10 * openvino.mean_kl
    assert not list((tmp_path / "references").iterdir())


def test_what_has_no_source_or_has_failed_is_left_out(tiny_llama, tiny_llama_ov):
    given = [
        candidate(tiny_llama_ov, None, "openvino"),
        candidate(tiny_llama, tiny_llama, "torch"),
        candidate(tiny_llama, tiny_llama, "echo"),
    ]
    given[1].row.error = "It broke."
    assert judged(given) == [
        "No quality of openvino: --reference MODEL names what it was made of.",
        "No quality of echo: that is for torch and openvino.",
    ]
    assert [one.row.quality for one in given] == [None] * 3


def test_all_models_answer_the_same_questions(tiny_llama, tiny_gpt2):
    windows = tuple(Window("prose", tuple(range(100)), 1) for _ in range(9))
    long, short = models.resolve(str(tiny_llama)), models.resolve(str(tiny_gpt2))
    reference = Reference(None, windows, 512, "float32")
    prompts, new_tokens = module._questions(reference, [long, short])
    assert {len(one) for one in prompts} == {64}
    assert new_tokens == 8
    tight = replace(short, context_length=20)
    prompts, new_tokens = module._questions(reference, [long, tight])
    assert ({len(one) for one in prompts}, new_tokens) == ({10}, 8)


def test_what_cannot_be_measured_is_said_and_the_others_go_on(tiny_llama, tiny_llama_ov, monkeypatch):
    run_child = module.run_child

    def refuse(child, arguments, **more):
        if arguments["reference_folder"] and arguments["loading"]["backend"] == "torch":
            raise BackendError("It broke.")
        return run_child(child, arguments, **more)

    monkeypatch.setattr(module, "run_child", refuse)
    given = [candidate(tiny_llama, tiny_llama, "torch"), candidate(tiny_llama_ov, tiny_llama, "openvino")]
    assert judged(given) == ["The quality of torch could not be measured: It broke."]
    assert given[0].row.quality is None
    assert given[1].row.quality.answers == 3


def test_a_reference_that_cannot_be_made(tiny_llama, monkeypatch):
    def refuse(*_, **__):
        raise UnsupportedModel("It has no logits.")

    monkeypatch.setattr(references, "make_reference", refuse)
    given = [candidate(tiny_llama, tiny_llama, "torch")]
    assert judged(given) == [f"No quality against {tiny_llama}: It has no logits."]


def test_stages_say_whose_work_it_is(tiny_llama):
    class Stages(Silent):
        seen = ()

        def stage(self, text):
            self.seen += (text,)

    stages = Stages()
    with References(LoadOptions(), stages) as made:
        Judge(made, stages, print, TEXTS).measure([candidate(tiny_llama, tiny_llama, "torch")])
    assert stages.seen == (f"Scoring {tiny_llama}", f"Answering with {tiny_llama}, exact", "Comparing torch", None)


def test_a_text_of_a_few_words(tiny_llama):
    (complaint,) = judged([candidate(tiny_llama, tiny_llama, "torch")], {"prose": "A few words, and no more of them."})
    assert re.fullmatch(r"Quality is measured on \d\d? tokens, which says little\.", complaint)
