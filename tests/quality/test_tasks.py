"""Items of tasks: what a line may say, which answers are right, and what a score is worth."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from hfpipe import models
from hfpipe.bench.spec import read_tasks
from hfpipe.errors import ContextLengthError, UsageError
from hfpipe.generator import open_generator
from hfpipe.quality import tasks
from hfpipe.quality.compare import Window
from hfpipe.quality.tasks import Item, choice_windows, choose, parse, score
from hfpipe.text.tasks import PromptEncoder
from hfpipe.text.tokenizer import load_tokenizer
from hfpipe.types import GenerationOptions, LoadOptions, Silent, TextRequest
from tests import tiny
from tests.quality.likeliest import likeliest

CHOICES = {"prompt": "One and one is", "choices": [" two", " three"], "answer": 0}
EXACT = {"prompt": "The capital of France is", "answer": "Paris"}


def lines(*values):
    return [(number, json.dumps(value).encode()) for number, value in enumerate(values, 1)]


# Lines


def test_two_forms_of_a_line():
    several = {"id": "x", "kind": "words", "prompt": "a", "answers": ["b", "c"], "choices": None}
    assert parse(lines(CHOICES, EXACT, several), "t.jsonl") == (
        Item("1", "multiple choice", "One and one is", choices=(" two", " three"), right=0),
        Item("2", "exact match", "The capital of France is", answers=("Paris",)),
        Item("x", "words", "a", answers=("b", "c")),
    )


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{", "it is not JSON in UTF-8."),
        (b'"\xff"', "it is not JSON in UTF-8."),
        (b"[" * 100_000, "it is not JSON in UTF-8."),
        (b"[1]", "expected an object, not a list."),
        ({}, "prompt must be text that is not blank."),
        ({**EXACT, "prompt": " "}, "prompt must be text that is not blank."),
        ({**EXACT, "kind": 1}, "kind must be text that is not blank."),
        ({**EXACT, "id": [1]}, "id must be text or a whole number, not a list."),
        ({**EXACT, "id": "1"}, "another line has the id 1."),
        ({**EXACT, "choice": [" a", " b"]}, "unknown field choice."),
        ({"prompt": "a"}, "expected choices with an answer, or else answer or answers."),
        ({**EXACT, "answers": ["b"]}, "expected choices with an answer, or else answer or answers."),
        ({"prompt": "a", "answers": []}, "answers must be a list of at least 1."),
        ({"prompt": "a", "answers": ["b", " "]}, "each of answers must be text that is not blank."),
        ({"prompt": "a", "answer": " ?!"}, "an answer has nothing but punctuation."),
        ({**CHOICES, "choices": [" two"]}, "choices must be a list of at least 2."),
        ({**CHOICES, "choices": " two"}, "choices must be a list of at least 2."),
        ({**CHOICES, "choices": [" two", " "]}, "each of choices must be text that is not blank."),
        ({**CHOICES, "answers": [" two"]}, "choices have one answer, and no answers."),
        *(
            ({**CHOICES, "answer": value}, "answer must be the place of a choice, from 0 to 1.")
            for value in (2, -1, True, " two", None)
        ),
    ],
)
def test_a_bad_line_is_refused_with_its_number(line, said):
    content = line if isinstance(line, bytes) else json.dumps(line).encode()
    with pytest.raises(UsageError) as caught:
        parse([*lines(CHOICES), (3, content)], "t.jsonl")
    assert caught.value.message == f"Line 3 of t.jsonl is not a task: {said}"
    if "unknown" in said:
        assert caught.value.hint == "Did you mean 'choices'?"


def test_a_file_of_tasks(tmp_path, monkeypatch):
    """Blank lines count; the file wins over hfpipe's own of that name."""
    monkeypatch.chdir(tmp_path)
    assert len(read_tasks(Path("builtin"))) == 100
    (tmp_path / "builtin").write_text(f"\n{json.dumps(EXACT)}\n")
    assert [item.id for item in read_tasks(Path("builtin"))] == ["2"]
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UsageError, match=r"empty\.jsonl has no tasks"):
        read_tasks(tmp_path / "empty.jsonl")
    with pytest.raises(UsageError, match=r"none\.jsonl cannot be read: No such file"):
        read_tasks(tmp_path / "none.jsonl")


def test_hfpipes_own_tasks(tmp_path, monkeypatch):
    """60 with choices, each place as often the right one; 40 with answers; no prompt twice."""
    monkeypatch.chdir(tmp_path)
    items = read_tasks(Path("builtin"))
    chosen = [item for item in items if item.choices]
    assert (len(items), len(chosen)) == (100, 60)
    assert Counter(item.right for item in chosen) == dict.fromkeys(range(4), 15)
    assert len({item.prompt for item in items}) == 100
    assert {item.kind for item in items} == {"knowledge", "arithmetic", "words", "code", "reasoning"}
    for item in chosen:
        assert len(set(item.choices)) == 4
        assert all(one.startswith(" ") for one in item.choices)


# Answers


@pytest.mark.parametrize(
    ("given", "right"),
    [
        *((text, True) for text in ("Paris", " paris.\nThe", "\n\nPARIS!", "Paris. It is large.", "new  york ?")),
        *((text, True) for text in ("St. Petersburg", "St. Petersburg. It is", "Paris? Yes. And")),
        *((text, False) for text in ("", "Parisian", "Paris, France", "It is Paris", "St", "\n")),
    ],
)
def test_an_answer_is_right_whatever_its_case_and_its_end(given, right):
    item = Item("1", "x", "", answers=("Paris", "New York", "St. Petersburg."))
    assert item.is_right(given) is right


def test_an_answer_has_room():
    assert Item("1", "x", "", answers=("a", "b" * 40)).max_tokens == 40
    assert Item("1", "x", "", answers=("a",)).max_tokens == 16


# Intervals


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    # Newcombe, Two-sided confidence intervals for the single proportion, Statistics in Medicine 17, 1998, table I.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_of_a_share(right, total, low, high):
    assert tasks.wilson(right, total) == pytest.approx((low, high), abs=5e-5)
    assert tasks.wilson(total - right, total) == pytest.approx((1 - high, 1 - low), abs=5e-5)


@pytest.mark.parametrize("table", [(70, 1, 4, 25), (40, 20, 5, 35), (97, 0, 3, 0), (30, 25, 25, 20), (50, 0, 0, 50)])
def test_the_interval_of_a_difference_is_about_what_resampling_gives(table):
    """Of the same pairs; it is as wide or some wider, never a point, and mirrored for the other way round."""
    both, ours, theirs, neither = table
    low, high = tasks.paired_interval(*table)
    draws = np.random.default_rng(1).multinomial(100, np.array(table) / 100, 20_000)
    drawn = np.quantile((draws[:, 1] - draws[:, 2]) / 100, [0.025, 0.975])
    assert low < (ours - theirs) / 100 < high
    assert (low, high) == pytest.approx(drawn, abs=0.045)
    assert tasks.paired_interval(both, theirs, ours, neither) == pytest.approx((-high, -low))


def test_a_score_and_its_difference_from_another():
    items = [Item(str(number), "ab"[number % 2], "", ("x", "y"), right=1) for number in range(100)]
    ours = {item.id: int(int(item.id) < 71) for item in items}
    theirs = {item.id: 1 <= int(item.id) < 75 for item in items}
    found = score(items, ours, ("torch", theirs))
    assert (found.right, found.items, found.kinds) == (71, 100, {"a": (36, 50), "b": (35, 50)})
    assert (found.low, found.high) == tasks.wilson(71, 100)
    assert (found.against, found.difference, found.versus) == ("torch", -3, "3 fewer (-8 to +2)")
    assert (found.correct["70"], found.correct["71"], found.given["70"]) == (True, False, 1)
    assert score(items, ours, ("same", found.correct)).versus == "as many (-2 to +2)"
    assert score(items, ours, ("less", dict.fromkeys(ours, False))).versus == "71 more (+61 to +79)"
    assert (score(items, ours).against, score(items, ours).versus) == (None, "")


# Windows of choices


def test_all_choices_are_scored_from_the_same_token_on(tiny_llama):
    """Where the last of the prompt is one token with a choice, from there."""
    source, tokenizer = models.resolve(str(tiny_llama)), load_tokenizer(tiny_llama)
    encoder = PromptEncoder(tokenizer, source)
    one, other = choice_windows(Item("1", "x", "The qui", (" dog", "ck brown"), 0), encoder, source)
    assert tokenizer.decode(one.token_ids) == "The qui dog"
    assert tokenizer.decode(other.token_ids) == "The quick brown"
    assert one.scored_from == other.scored_from
    assert tokenizer.decode(one.token_ids[: one.scored_from]) == "The qu"
    with pytest.raises(ContextLengthError, match=r"Task 1 has .* and the model's context is 512"):
        choice_windows(Item("1", "x", "a " * 600, ("b", "c")), encoder, source)


def test_the_log_probability_of_all_targets():
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]))
    assert tasks.log_probability(Window("x", (0, 1, 2), 1), logits) == pytest.approx(np.log(0.25 * 0.8))


# Real models


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_a_model_chooses_what_is_likeliest(tiny_llama, tiny_llama_ov, backend):
    folder = tiny_llama if backend == "torch" else tiny_llama_ov
    options = LoadOptions(backend=backend, device="cpu", exact=True)
    words = (" dog", " fox", " and", " the", " not", " all", " has", " brown fox", " lazy")
    items = []
    for number, sentence in enumerate(tiny.SENTENCES):
        prompt = sentence.rsplit(" ", 2)[0]
        items.append(Item(str(number), "x", prompt, words, right=likeliest(tiny_llama, prompt, words)))
    found = choose(models.resolve(str(folder)), options, items, Silent())
    assert found == [item.right for item in items]
    assert len(set(found)) > 1


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_an_encoder_decoder_model_chooses_what_is_its_likeliest_answer(tiny_seq2seq, tiny_seq2seq_ov, backend):
    source = tiny_seq2seq("t5")
    folder = source if backend == "torch" else tiny_seq2seq_ov("t5")
    options, items = LoadOptions(backend=backend, device="cpu", exact=True), []
    with open_generator(str(folder), options) as generator:
        for number, sentence in enumerate(tiny.SENTENCES):
            request = TextRequest("1", sentence, GenerationOptions(max_tokens=4, temperature=0))
            (answer,) = generator.generate([request])
            choices = (*(" " + one[:9] for one in tiny.SENTENCES), answer.text)
            items.append(Item(str(number), "x", sentence, choices, right=likeliest(source, sentence, choices)))
    found = choose(models.resolve(str(folder)), options, items, Silent())
    assert found == [item.right for item in items]
    assert 5 in found
