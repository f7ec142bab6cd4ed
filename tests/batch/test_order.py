"""Records in, results out, in order, whatever order answers come in and whatever is wrong with a record."""

import itertools
import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfpipe.batch import order
from hfpipe.batch.formats import HFPipeFormat
from hfpipe.batch.lines import Line
from hfpipe.batch.openai_format import OpenAIFormat
from hfpipe.batch.order import Tally, TooManyErrors
from hfpipe.batch.prompts import Prompts
from hfpipe.errors import BackendError, ContextLengthError, OutOfMemory, UsageError
from hfpipe.text.templates import PromptTemplate, parse_template
from hfpipe.types import Completion, TextRequest, Usage

FORM = HFPipeFormat(frozenset({"question"}))
PROMPTS = Prompts(PromptTemplate(parse_template("raw"), "tiny"))
FAILURES = {
    "engine": BackendError("Broke."),
    "memory": OutOfMemory("Full."),
    "long": ContextLengthError("Long."),
    "usage": UsageError("Wrong."),
}


def lines(*records):
    for number, record in enumerate(records, 1):
        content = record if isinstance(record, bytes) else json.dumps(record).encode()
        yield Line(number, content, b"")


def questions(count):
    return lines(*({"question": f"q{i}"} for i in range(count)))


def completion(request):
    """As a generator answers: an empty prompt is refused."""
    if not request.prompt:
        return Completion(request.id, "", "error", error=UsageError("The prompt is empty."))
    if request.prompt in FAILURES:
        return Completion(request.id, "", "error", error=FAILURES[request.prompt])
    return Completion(request.id, request.prompt.upper(), "stop", Usage(3, 4))


def in_turn(requests):
    return (completion(request) for request in requests if request)


class Engine:
    """Keeps `window` requests in flight, and ends the one that `choose` says, None for none now."""

    def __init__(self, choose, window=4):
        self.choose, self.window, self.asked, self.idle = choose, window, [], 0

    def __call__(self, requests):
        waiting, flying, open_ = iter(requests), [], True
        while open_ or flying:
            while open_ and len(flying) < self.window:
                try:
                    request = next(waiting)
                except StopIteration:
                    open_ = False
                    break
                if request is None:
                    self.idle += 1
                    break
                self.asked.append(request)
                flying.append(request)
            if flying:
                yield completion(flying.pop(self.choose(len(flying))))


def run(source, answers=in_turn, form=FORM, tally=None, **settings):
    return list(order.results(source, answers, PROMPTS, form, tally or Tally(), **settings))


def texts(results):
    return [json.loads(line)["text"] for line in results]


def types(results):
    return [error and error["type"] for error in (json.loads(line)["error"] for line in results)]


def test_nothing():
    assert run(lines()) == []


def test_results_and_their_tally():
    tally = Tally()
    assert texts(run(questions(3), tally=tally)) == ["Q0", "Q1", "Q2"]
    assert tally == Tally(3, 9, 12, Counter())


@pytest.mark.parametrize("choose", [lambda n: 0, lambda n: n - 1, lambda n: n // 2])
def test_the_order_is_that_of_the_input(choose):
    assert run(questions(50), Engine(choose)) == run(questions(50))


@given(st.integers(0, 30), st.integers(1, 9), st.integers(1, 9), st.randoms(use_true_random=False))
def test_any_interleaving_gives_the_same_bytes(count, window, ahead, random):
    records = [random.choice([{"question": f"q{i}"}, {"x": 1}, b"{", {"question": "engine"}]) for i in range(count)]
    tally, expected = Tally(), Tally()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "AHEAD", ahead)
        mixed = run(lines(*records), Engine(random.randrange, window), tally=tally)
    assert mixed == run(lines(*records), tally=expected)
    assert tally == expected


def test_each_result_comes_as_soon_as_all_before_it_are_there():
    engine = Engine(lambda n: n - 1, window=2)
    come = order.results(questions(3), engine, PROMPTS, FORM, tally := Tally())
    seen = [tally.records for _ in come]
    # 1, 2, then 0.
    assert seen == [3, 3, 3]
    come = order.results(questions(3), in_turn, PROMPTS, FORM, tally := Tally())
    assert [tally.records for _ in come] == [1, 2, 3]


def test_lines_are_read_as_there_is_room():
    """A pipe may give its lines one by one, and never end."""
    source = (Line(i, b'{"question": "q"}', b"") for i in itertools.count(1))
    assert len(list(itertools.islice(order.results(source, Engine(lambda _: 0), PROMPTS, FORM, Tally()), 10))) == 10
    assert next(source).number <= 16


def test_what_is_wrong_with_a_record_is_its_result():
    tally = Tally()
    bad = [
        b"{", b"[]", {"x": 1}, {"question": "q", "temperatur": 1}, {"question": "q", "max_tokens": 0},
        {"messages": [{"role": "user", "content": "Hi"}]}, {"question": ""},
        {"question": "engine"}, {"question": "memory"}, {"question": "long"},
    ]  # fmt: skip
    good = {"question": "fine"}
    results = run(lines(*itertools.chain(*((good, one) for one in bad)), good), Engine(lambda n: n - 1), tally=tally)
    expected = [
        "invalid_json", "invalid_record", "missing_variable", "unknown_option", "invalid_record",
        "invalid_record", "invalid_record",
        "engine", "out_of_memory", "context_length",
    ]  # fmt: skip
    assert types(results)[1::2] == expected
    assert texts(results)[::2] == ["FINE"] * 11
    assert tally.errors == Counter(expected)
    assert (tally.records, tally.failed, tally.prompt_tokens) == (21, 10, 33)
    assert [json.loads(line)["id"] for line in results] == [str(n) for n in range(1, 22)]


def test_a_record_that_cannot_be_asked_is_not_shown_to_the_engine():
    engine = Engine(lambda _: 0)
    (line,) = run(lines({"x": "secret"}), engine)
    assert engine.asked == [TextRequest("0", "")]
    assert "No value for {prompt}" in json.loads(line)["error"]["message"]


def test_errors_in_the_envelope_of_openai():
    requests = [
        {"custom_id": "a", "url": "/v1/completions", "body": {"prompt": "Hi"}},
        {"custom_id": "b", "url": "/v1/chat/completions", "body": {"messages": [{"role": "user", "content": "Hi"}]}},
        {"custom_id": "c", "url": "/v1/completions", "body": {"prompt": "engine"}},
    ]
    results = [json.loads(line) for line in run(lines(*requests), Engine(lambda n: n - 1), OpenAIFormat("m"))]
    assert [(one["custom_id"], one["response"]["status_code"]) for one in results] == [
        ("a", 200),
        ("b", 400),
        ("c", 500),
    ]


@pytest.mark.parametrize(("allowed", "come"), [(0, 2), (1, 4), (2, 5)])
def test_more_errors_than_are_allowed_end_it_after_their_results(allowed, come):
    results = []
    with pytest.raises(TooManyErrors, match=f"--max-errors is {allowed}") as caught:
        results.extend(limited(allowed))
    assert caught.value.exit_code == 3
    assert len(results) == come


def test_as_many_errors_as_are_allowed_do_not():
    assert len(list(limited(3))) == 6


def limited(allowed):
    source = lines({"question": "q"}, b"{", {"question": "q"}, {"question": "engine"}, b"[", {"question": "q"})
    return order.results(source, in_turn, PROMPTS, FORM, Tally(), max_errors=allowed)


def test_the_engine_is_held_back_while_the_oldest_answer_is_awaited(monkeypatch):
    monkeypatch.setattr(order, "AHEAD", 10)
    held = []

    def hold_the_first(requests):
        waiting = iter(requests)
        held.append(next(waiting))
        for request in itertools.islice(waiting, 9):
            yield completion(request)
        # No more of them, though there are more.
        assert [next(waiting) for _ in range(5)] == [None] * 5
        yield completion(held.pop())
        # All ten are out, and ten more may come in.
        for request in itertools.islice(waiting, 10):
            yield completion(request)
        for request in waiting:
            yield completion(request)

    seen = []
    for line in order.results(questions(100), hold_the_first, PROMPTS, FORM, Tally()):
        assert not held
        seen.append(line)
    assert texts(seen) == [f"Q{i}" for i in range(100)]


def test_a_broken_engine_ends_the_run_after_what_is_finished():
    def broken(requests):
        yield from itertools.islice(in_turn(requests), 2)
        raise BackendError("The engine is gone.")

    results = []
    with pytest.raises(BackendError, match="gone"):
        results.extend(order.results(questions(9), broken, PROMPTS, FORM, Tally()))
    assert texts(results) == ["Q0", "Q1"]


def test_progress_is_told_of_every_record():
    told = []
    tally = Tally()
    run(questions(5), Engine(lambda n: n - 1), tally=tally, on_progress=lambda: told.append(tally.records))
    assert told == [1, 2, 3, 4, 5]
