"""The order in which candidates are measured, and what a failure does to them."""

from pathlib import Path

import pytest
from hypothesis import given as given_by
from hypothesis import settings
from hypothesis import strategies as st

from hfpipe.bench import rounds
from hfpipe.bench.candidates import Candidate
from hfpipe.bench.report import Configuration
from hfpipe.bench.rounds import Rounds, drawn
from hfpipe.bench.spec import Spec, Workload
from hfpipe.errors import BackendError
from hfpipe.types import LoadOptions, ModelSource, Silent
from tests.recorder import Recorder


def candidate(name):
    source = ModelSource("m", Path(), "transformers", {"vocab_size": 9}, {}, None)
    return Candidate(Configuration(name, "m", "torch", None, (), ()), source, LoadOptions(), None)


@pytest.fixture
def others():
    """What other processes use while a candidate is measured, by its name."""
    return {}


@pytest.fixture
def done(monkeypatch, others):
    """What was measured, in its order; candidates whose name ends in a number fail in that round."""
    found = []

    def child(self, module, what, candidate, size, **given):
        name = candidate.row.name
        task = "start" if "question" in given else f"batch{size}"
        number = len([one for one in found if one[:2] == (name, task)]) - (task == "start")
        found.append((name, task, number))
        if name.endswith(str(number)):
            raise BackendError("It broke.")
        engine = {"device": "cpu", "dtype": "float32", "detail": {}}
        values = {"values": {"x": 1.0}, "others_cpu": others.get(name)}
        return values if task == "start" else {"sample": values, "engine": engine}

    monkeypatch.setattr(rounds.Rounds, "_child", child)
    return found


def measure(given, workload, repeats, reporter=None, *more):
    Rounds(Spec(("m",), workload, repeats=repeats), reporter or Silent(), *more).measure(given)


def test_rounds_go_over_all_candidates_forward_and_back(done):
    measure([candidate("a"), candidate("b"), candidate("c")], Workload(8, 8), 3, Silent())
    assert [name for name, task, _ in done if task == "start"] == [*"abc", *"abc", *"cba", *"abc"]


def test_each_candidate_starts_and_then_answers_in_each_size(done):
    one = candidate("a")
    measure([one], Workload(8, 8, (8, 2)), 2, Silent())
    tasks = ["start", "batch1", "batch2", "batch8"]
    # A first start is not kept.
    assert [task for _, task, _ in done] == ["start", *tasks * 2]
    assert [(sample.task, sample.round) for sample in one.row.samples] == [
        (t, n) for n in (0, 1) for t in ("start", "single", "batch2", "batch8")
    ]


def test_what_fails_is_left_out_from_then_on(done):
    given = [candidate("fine"), candidate("fails in 1")]
    progress = Recorder()
    measure(given, Workload(8, 8), 3, progress)
    assert [one.row.error for one in given] == [None, "It broke."]
    assert [number for name, _, number in done if name == "fails in 1"] == [-1, 0, 0, 1]
    assert len(given[0].row.samples) == 6
    assert len(given[1].row.samples) == 2
    assert [done < total for _, done, total, *_ in progress.steps] == [True] * 14 + [False]


def test_what_is_under_way_is_told(done):
    progress = Recorder()
    measure([candidate("a")], Workload(8, 8, (1, 4)), 2, progress)
    assert [detail for *_, detail in progress.steps[:-1]] == [
        "a, first start",
        *(f"a, {task} ({n} of 2)" for n in (1, 2) for task in ("start", "one answer", "4 at once")),
    ]


def test_a_busy_machine_is_told_of_before_it_is_measured(done, others):
    others.update(a=0.30, b=0.10, c=0.12)
    progress = Recorder()
    measure([candidate(name) for name in "abc"], Workload(8, 8), 2, progress)
    (note,) = progress.notes
    assert note.startswith("Warning: The machine is busy: other processes use 12% of its processors.")


def test_a_quiet_machine_is_not_told_of(done, others):
    others["a"] = 0.04
    progress = Recorder()
    measure([candidate("a")], Workload(8, 8), 2, progress)
    assert progress.notes == []


@settings(max_examples=20)
@given_by(st.text(), st.integers(1, 1000), st.lists(st.tuples(st.integers(1, 50), st.integers(1, 9)), max_size=4))
def test_random_prompts(seed, vocabulary, shapes):
    prompts = drawn(seed, vocabulary, shapes)
    assert prompts == drawn(seed, vocabulary, shapes)
    assert [(len(token_ids), new_tokens) for token_ids, new_tokens in prompts] == shapes
    assert all(0 <= token < vocabulary for token_ids, _ in prompts for token in token_ids)


def test_random_prompts_are_others_in_each_round():
    prompts = [one for number in range(5) for one in drawn(f"round {number}", 1000, [(64, 1)] * 8)]
    assert len({tuple(token_ids[:16]) for token_ids, _ in prompts}) == 40
