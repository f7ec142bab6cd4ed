"""How far configurations are from their source."""

import re
from dataclasses import replace

import pytest

from hfpipe import models, quality
from hfpipe.bench import quality as module
from hfpipe.bench.candidates import Candidate
from hfpipe.bench.quality import measure_quality, references
from hfpipe.bench.report import Configuration
from hfpipe.errors import BackendError, ConversionError, UnsupportedModel
from hfpipe.quality.compare import Reference, Window
from hfpipe.types import LoadOptions, Silent
from tests import tiny
from tests.tiny_exports import in_this_process


class Stages(Silent):
    def __init__(self):
        self.seen = []

    def stage(self, text):
        self.seen.append(text)


TEXTS = {"prose": " ".join(tiny.SENTENCES * 12)}


@pytest.fixture(autouse=True)
def short(monkeypatch, tmp_path):
    """Few answers; references are made in a folder of the test."""
    monkeypatch.setattr(module, "_PROMPTS", 3)
    monkeypatch.setattr(module, "_ANSWER_TOKENS", 8)
    monkeypatch.setattr(module, "cache_root", lambda: tmp_path)


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
    with references(LoadOptions(), Silent()) as made:
        measure_quality(given, made, Silent(), complaints.append, texts=texts)
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
    assert not list((tmp_path / "references").glob("*"))


def test_what_has_no_source_or_has_failed_is_left_out(tiny_llama, tiny_llama_ov):
    given = [
        candidate(tiny_llama_ov, None, "openvino"),
        candidate(tiny_llama, tiny_llama, "torch"),
        candidate(tiny_llama, tiny_llama, "echo"),
    ]
    given[1].row.error = "It broke."
    assert judged(given) == [
        "No quality of openvino: its source is unknown; name it with --reference MODEL.",
        "No quality of echo: only torch and openvino can be scored.",
    ]
    assert [one.row.quality for one in given] == [None] * 3


def test_all_models_answer_the_same_questions(tiny_llama, tiny_gpt2):
    windows = tuple(Window("prose", tuple(range(100)), 1) for _ in range(9))
    long, short = models.resolve(str(tiny_llama)), models.resolve(str(tiny_gpt2))
    reference = Reference(None, windows, 512, "float32")
    prompts, new_tokens = module.questions(reference, [long, short])
    assert {len(one) for one in prompts} == {64}
    assert new_tokens == 8
    tight = replace(short, context_length=20)
    prompts, new_tokens = module.questions(reference, [long, tight])
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

    monkeypatch.setattr(module, "make_reference", refuse)
    given = [candidate(tiny_llama, tiny_llama, "torch")]
    assert judged(given) == [f"No quality against {tiny_llama}: It has no logits."]


def test_stages_say_whose_work_it_is(tiny_llama):
    stages = Stages()
    with references(LoadOptions(), stages) as made:
        measure_quality([candidate(tiny_llama, tiny_llama, "torch")], made, stages, print, texts=TEXTS)
    assert stages.seen == [f"Scoring {tiny_llama}", f"Answering with {tiny_llama}, exact", "Comparing torch", None]


def test_a_text_of_a_few_words(tiny_llama):
    (complaint,) = judged([candidate(tiny_llama, tiny_llama, "torch")], {"prose": "A few words, and no more of them."})
    assert re.fullmatch(r"Quality was measured on only \d\d? tokens, which says little\.", complaint)


# Source models are scored once in a run


@pytest.fixture
def scored(monkeypatch):
    """What was scored: the model and the texts."""
    found = []

    def make_reference(source, folder, *, texts, **_):
        found.append((source.reference, texts))
        (folder / "rows").write_text("of gigabytes")
        if "bad" in (texts or ()):
            raise ConversionError("It cannot be scored.")
        return Reference(folder, (), 1, "float32")

    monkeypatch.setattr(module, "make_reference", make_reference)
    return found


@pytest.fixture
def left(tmp_path):
    """What stands in the place of references."""
    return lambda: sorted((tmp_path / "references").glob("*"))


def test_each_is_made_at_its_first_call(tiny_llama, tiny_gpt2, scored, left):
    llama, gpt2 = (models.resolve(str(folder)) for folder in (tiny_llama, tiny_gpt2))
    stages, own = Stages(), {"prose": "a text"}
    with references(LoadOptions(), stages) as score:
        first = score(llama)
        assert score(llama) is first
        others = [score(gpt2), score(llama, own)]
        assert score(llama, dict(own)) is others[1]
        assert len({one.folder for one in (first, *others)}) == 3
        assert all((one.folder / "rows").is_file() for one in (first, *others))
    assert scored == [(str(tiny_llama), None), (str(tiny_gpt2), None), (str(tiny_llama), own)]
    assert stages.seen == [f"Scoring {name}" for name, _ in scored]
    assert left() == []


def test_one_that_cannot_be_made_is_tried_once_and_leaves_nothing(tiny_llama, scored, left):
    llama = models.resolve(str(tiny_llama))
    with references(LoadOptions(), Silent()) as score:
        for _ in range(2):
            with pytest.raises(ConversionError, match="It cannot be scored"):
                score(llama, {"bad": ""})
            assert left() == []
    assert len(scored) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, ConversionError])
def test_whatever_ends_the_run_they_are_removed(tiny_llama, scored, left, error):
    def run():
        with references(LoadOptions(), Silent()) as score:
            assert score(models.resolve(str(tiny_llama))).folder.is_dir()
            raise error("The end.")

    with pytest.raises(error):
        run()
    assert left() == []
