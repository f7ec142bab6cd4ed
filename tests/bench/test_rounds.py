"""The order in which candidates are measured, and what a failure does to them."""

import pytest

from hfpipe.bench import rounds
from hfpipe.bench.candidates import Candidate
from hfpipe.bench.measure import Prompt
from hfpipe.bench.metrics import Workload
from hfpipe.bench.report import Configuration, Sample
from hfpipe.errors import BackendError, UsageError
from hfpipe.types import LoadOptions, Silent


def candidate(name):
    return Candidate(Configuration(name, "m", "torch", None, (), ()), None, LoadOptions(), None)


class Progress(Silent):
    def __init__(self):
        self.steps, self.notes = [], []

    def note(self, text):
        self.notes.append(text)

    def progress(self, task, done, total, unit="bytes", detail=""):
        self.steps.append((done < total, detail))


@pytest.fixture
def others():
    """What other processes use while a candidate is measured, by its name."""
    return {}


@pytest.fixture
def done(monkeypatch, others):
    """What was measured, in its order; candidates whose name ends in a number fail in that round."""
    found = []

    class Start:
        name = "start"

        def measure(self, candidate, number, heard):
            found.append((candidate.row.name, self.name, number))
            if candidate.row.name.endswith(str(number)):
                raise BackendError("It broke.")
            return Sample(self.name, number, {"x": 1.0}, (), others.get(candidate.row.name))

    class Answers(Start):
        def __init__(self, workload, batch, prompts):
            self.name = f"batch{batch}" + (" own" if prompts else "")

    monkeypatch.setattr(rounds, "Start", Start)
    monkeypatch.setattr(rounds, "Answers", Answers)
    return found


def measure(given, workload, repeats, reporter=None, *more):
    rounds.Rounds(workload, repeats, reporter or Silent(), *more).measure(given)


def test_rounds_go_over_all_candidates_forward_and_back(done):
    measure([candidate("a"), candidate("b"), candidate("c")], Workload(8, 8), 3, Silent())
    assert [name for name, task, _ in done if task == "start"] == [*"abc", *"abc", *"cba", *"abc"]


def test_each_candidate_starts_and_then_answers_in_each_size(done):
    one = candidate("a")
    measure([one], Workload(8, 8, (8, 2)), 2, Silent())
    tasks = ["start", "batch1", "batch2", "batch8"]
    # A first start is not kept.
    assert [task for _, task, _ in done] == ["start", *tasks * 2]
    assert [(sample.task, sample.round) for sample in one.row.samples] == [(t, n) for n in (0, 1) for t in tasks]


def test_what_fails_is_left_out_from_then_on(done):
    given = [candidate("fine"), candidate("fails in 1")]
    progress = Progress()
    measure(given, Workload(8, 8), 3, progress)
    assert [one.row.error for one in given] == [None, "It broke."]
    assert [number for name, _, number in done if name == "fails in 1"] == [-1, 0, 0, 1]
    assert len(given[0].row.samples) == 6
    assert len(given[1].row.samples) == 2
    assert [more for more, _ in progress.steps] == [True] * 14 + [False]


def test_what_is_under_way_is_told(done):
    progress = Progress()
    measure([candidate("a")], Workload(8, 8, (1, 4)), 2, progress)
    assert [detail for _, detail in progress.steps] == [
        "a, a first start",
        *(f"a, {task} ({n} of 2)" for n in (1, 2) for task in ("its start", "one answer", "4 at once")),
        "",
    ]


def test_a_busy_machine_is_told_of_before_it_is_measured(done, others):
    others.update(a=0.30, b=0.10, c=0.12)
    progress = Progress()
    measure([candidate(name) for name in "abc"], Workload(8, 8), 2, progress)
    (note,) = progress.notes
    assert note.startswith("Warning: The machine is busy: other processes use 12% of its processors.")


def test_a_quiet_machine_is_not_told_of(done, others):
    others["a"] = 0.04
    progress = Progress()
    measure([candidate("a")], Workload(8, 8), 2, progress)
    assert progress.notes == []


def test_prompts_of_the_users_own(done):
    measure([candidate("a")], Workload(None, 8), 1, Silent(), lambda _: [Prompt((1,), 2)])
    assert [task for _, task, _ in done] == ["start", "start", "batch1 own"]


def test_prompts_that_have_no_place_in_a_model_are_its_error(done):
    def refuse(_):
        raise UsageError("No place.")

    one = candidate("a")
    measure([one], Workload(None, 8), 2, Silent(), refuse)
    assert one.row.error == "No place."
    assert [task for _, task, _ in done] == ["start", "start"]
