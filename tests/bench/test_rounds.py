"""The order in which candidates are measured, and what a failure does to them."""

import json
from pathlib import Path

import pytest

from hfpipe import models
from hfpipe.bench import rounds
from hfpipe.bench.candidates import Candidate
from hfpipe.bench.measure import Prompt
from hfpipe.bench.report import Configuration
from hfpipe.bench.rounds import Rounds, TokenizedPrompts
from hfpipe.bench.spec import Spec, Workload, read_prompts
from hfpipe.errors import BackendError, ContextLengthError, MissingVariable, TemplateError, UsageError
from hfpipe.text.tokenizer import load_tokenizer
from hfpipe.types import LoadOptions, ModelSource, Silent


def candidate(name):
    source = ModelSource("m", Path(), "transformers", {"vocab_size": 9}, {}, None)
    return Candidate(Configuration(name, "m", "torch", None, (), ()), source, LoadOptions(), None)


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

    def child(self, module, what, given):
        name = what.partition(" ")[2]
        task = "start" if "question" in given else f"batch{given['batch']}" + (" own" if given["prompts"] else "")
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
        "a, first start",
        *(f"a, {task} ({n} of 2)" for n in (1, 2) for task in ("start", "one answer", "4 at once")),
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


# The user's own prompts


def records(tmp_path, *lines):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return read_prompts(path)


def tokenized(given, folder):
    return TokenizedPrompts(Spec(("m",), Workload(None, 5), prompts=given))(models.resolve(str(folder)))


def test_they_are_put_to_the_model_as_batch_does_it(tiny_gpt2, tiny_llama, tmp_path):
    given = records(tmp_path, {"question": "What is EEG?"}, {"prompt": "What is EEG?", "max_tokens": 3})
    first, second = tokenized(given, tiny_gpt2)
    assert (first.new_tokens, second.new_tokens) == (5, 3)
    asked = "Question: What is EEG?\n\nAnswer: Let's think step by step."
    assert first.token_ids == second.token_ids == load_tokenizer(tiny_gpt2).encode(asked, True)
    as_chat, _ = tokenized(given, tiny_llama)
    assert as_chat.token_ids != first.token_ids


@pytest.mark.parametrize(
    ("line", "kind", "said", "hint"),
    [
        ({"text": "x"}, MissingVariable, "No value for {question}", 'A line needs a "prompt", a "question"'),
        (
            {"prompt": "x", "max_tokens": 128},
            ContextLengthError,
            "tokens, and the model's context is 128.",
            "new_tokens (-g)",
        ),
        ({"messages": [{"role": "user", "content": "x"}]}, TemplateError, "Messages need a chat template", ""),
    ],
)
def test_one_that_does_not_fit_the_model_is_said_with_its_line(tiny_gpt2, tmp_path, line, kind, said, hint):
    given = records(tmp_path, {"prompt": "a"}, "", line)
    with pytest.raises(kind) as caught:
        tokenized(given, tiny_gpt2)
    assert caught.value.message.startswith("Line 3 of the prompts: ")
    assert said in caught.value.message
    assert hint in (caught.value.hint or "")
    assert "--var" not in (caught.value.hint or "")


def test_a_line_that_is_none_and_a_file_without_any(tmp_path):
    with pytest.raises(UsageError, match=r"Invalid prompt in line 2 of .*: "):
        records(tmp_path, {"prompt": "a"}, "{")
    with pytest.raises(UsageError, match="has no prompts"):
        records(tmp_path)
