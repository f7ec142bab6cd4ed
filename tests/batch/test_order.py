"""Records in, results out, in order, whatever order answers come in and whatever is wrong with a record."""

import itertools
import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfpipe.batch import order
from hfpipe.batch.formats import Format, OpenAIFormat
from hfpipe.batch.lines import Line
from hfpipe.batch.order import Summary, TooManyErrors
from hfpipe.errors import (
    AccessDenied,
    BackendError,
    ContextLengthError,
    HFPipeError,
    ModelNotFound,
    OutOfMemory,
    ServerUnavailable,
    UsageError,
)
from hfpipe.generator import FailedRequest
from hfpipe.text.templates import PromptTemplate, parse_template
from hfpipe.types import Completion, GenerationOptions, Timing, Usage

FORM = Format(frozenset({"question"}))
FAILURES = {
    "": UsageError("The prompt is empty."),
    "engine": BackendError("Broke."),
    "memory": OutOfMemory("Full."),
    "long": ContextLengthError("Long."),
}


def lines(*records):
    for number, record in enumerate(records, 1):
        content = record if isinstance(record, bytes) else json.dumps(record).encode()
        yield Line(number, content, b"")


def questions(count):
    return lines(*({"question": f"q{i}"} for i in range(count)))


def completion(request):
    """As a generator answers."""
    error = request.error if isinstance(request, FailedRequest) else FAILURES.get(request.prompt)
    if error:
        return Completion(request.id, "", "error", error=error)
    return Completion(request.id, request.prompt.upper(), "stop", Usage(3, 4))


def in_turn(requests):
    return ((index, completion(request)) for index, request in enumerate(filter(None, requests)))


class Engine:
    """Keeps `window` requests in flight, and ends the one that `choose` says."""

    def __init__(self, choose, window=4):
        self.choose, self.window = choose, window

    def __call__(self, requests):
        waiting, flying, index = iter(requests), [], itertools.count()
        ended = False
        while not ended or flying:
            while not ended and len(flying) < self.window:
                request = next(waiting, "no more")
                ended = request == "no more"
                if ended or request is None:
                    break
                flying.append((next(index), request))
            if flying:
                number, request = flying.pop(self.choose(len(flying)))
                yield number, completion(request)


def results(source, stream=in_turn, form=FORM, summary=None, **settings):
    template, options = PromptTemplate(parse_template("raw"), "tiny"), GenerationOptions()
    made = order.results(
        source, form, lambda record: record.request(template, options), stream, summary or Summary(), **settings
    )
    return (line for _, line in made)


def texts(made):
    return [json.loads(line)["text"] for line in made]


def test_nothing():
    assert list(results(lines())) == []


@pytest.mark.parametrize("choose", [lambda n: 0, lambda n: n - 1, lambda n: n // 2])
def test_the_order_is_that_of_the_input(choose):
    summary = Summary()
    assert texts(results(questions(50), Engine(choose), summary=summary)) == [f"Q{i}" for i in range(50)]
    assert summary == Summary(None, 50, 0, {}, 150, 200)


@given(st.integers(0, 30), st.integers(1, 9), st.integers(1, 9), st.randoms(use_true_random=False))
def test_any_interleaving_gives_the_same_bytes(count, window, ahead, random):
    records = [random.choice([{"question": f"q{i}"}, {"x": 1}, b"{", {"question": "engine"}]) for i in range(count)]
    summary, expected = Summary(), Summary()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "AHEAD", ahead)
        mixed = list(results(lines(*records), Engine(random.randrange, window), summary=summary))
    assert mixed == list(results(lines(*records), summary=expected))
    assert summary == expected


def test_each_result_comes_as_soon_as_all_before_it_are_there():
    """And progress is told of every record."""
    summary, told = Summary(), []
    backwards = Engine(lambda n: n - 1, window=2)
    come = results(questions(3), backwards, summary=summary, on_progress=lambda: told.append(summary.answered))
    # 1, 2, then 0.
    assert [summary.answered for _ in come] == [3, 3, 3]
    assert told == [1, 2, 3]
    come = results(questions(3), summary=(summary := Summary()))
    assert [summary.answered for _ in come] == [1, 2, 3]


def test_lines_are_read_as_there_is_room():
    """A pipe may give its lines one by one, and never end."""
    source = (Line(i, b'{"question": "q"}', b"") for i in itertools.count(1))
    assert len(list(itertools.islice(results(source, Engine(lambda _: 0)), 10))) == 10
    assert next(source).number <= 16


def test_what_is_wrong_with_a_record_is_its_result():
    bad = {
        b"{": "invalid_json",
        b"[]": "invalid_record",
        b'{"x": 1}': "missing_variable",
        b'{"question": "q", "temperatur": 1}': "unknown_option",
        b'{"question": "q", "max_tokens": 0}': "invalid_record",
        b'{"messages": [{"role": "user", "content": "Hi"}]}': "invalid_record",
        b'{"question": ""}': "invalid_record",
        b'{"question": "engine"}': "engine",
        b'{"question": "memory"}': "out_of_memory",
        b'{"question": "long"}': "context_length",
    }
    good, summary = b'{"question": "fine"}', Summary()
    records = itertools.chain(*((good, one) for one in bad), [good])
    made = [json.loads(one) for one in results(lines(*records), Engine(lambda n: n - 1), summary=summary)]
    assert [one["error"]["type"] for one in made[1::2]] == list(bad.values())
    assert [one["text"] for one in made[::2]] == ["FINE"] * 11
    assert summary == Summary(None, 21, 0, Counter(bad.values()), 33, 44)
    assert [one["id"] for one in made] == [str(n) for n in range(1, 22)]


def test_errors_in_the_envelope_of_openai():
    requests = [
        {"custom_id": "a", "url": "/v1/completions", "body": {"prompt": "Hi"}},
        {"custom_id": "b", "url": "/v1/chat/completions", "body": {"messages": [{"role": "user", "content": "Hi"}]}},
        {"custom_id": "c", "url": "/v1/completions", "body": {"prompt": "engine"}},
    ]
    made = map(json.loads, results(lines(*requests), Engine(lambda n: n - 1), OpenAIFormat()))
    assert [(one["custom_id"], one["response"]["status_code"]) for one in made] == [("a", 200), ("b", 400), ("c", 500)]


@pytest.mark.parametrize(("allowed", "come"), [(0, 2), (1, 4), (2, 5), (3, 6)])
def test_more_errors_than_are_allowed_end_it_after_their_results(allowed, come):
    source = lines({"question": "q"}, b"{", {"question": "q"}, {"question": "engine"}, b"[", {"question": "q"})
    made = results(source, max_errors=allowed)
    assert len(list(itertools.islice(made, come))) == come
    if allowed < 3:
        with pytest.raises(TooManyErrors, match=f"max_errors is {allowed}") as caught:
            next(made)
        assert caught.value.exit_code == 3


def test_the_engine_is_held_back_while_the_oldest_answer_is_awaited(monkeypatch):
    monkeypatch.setattr(order, "AHEAD", 10)
    held = []

    def hold_the_first(requests):
        waiting = enumerate(iter(lambda: next(requests), "never"))
        held.append(next(waiting))
        for index, request in itertools.islice(waiting, 9):
            yield index, completion(request)
        # No more of them, though there are more.
        assert [next(requests) for _ in range(5)] == [None] * 5
        index, request = held.pop()
        yield index, completion(request)
        # All ten are out, and more may come in.
        for index, request in enumerate(requests, 10):
            yield index, completion(request)

    seen = []
    for line in results(questions(100), hold_the_first):
        assert not held
        seen.append(line)
    assert texts(seen) == [f"Q{i}" for i in range(100)]


def broken_engine(requests):
    yield from itertools.islice(in_turn(requests), 2)
    raise BackendError("It is gone.")


def broken_input():
    yield from questions(2)
    raise HFPipeError("It is gone.")


@pytest.mark.parametrize(("source", "engine"), [(questions(9), broken_engine), (broken_input(), in_turn)])
def test_what_breaks_ends_the_run_after_what_is_finished(source, engine):
    made = results(source, engine)
    assert texts(itertools.islice(made, 2)) == ["Q0", "Q1"]
    with pytest.raises(HFPipeError, match="gone"):
        next(made)


# Servers


def served(*said):
    """What is written of answers in this order, and how the batch ended: a text is one, or what came of one that broke
    off."""

    def stream(requests):
        for index, (_, one) in enumerate(zip(requests, said, strict=False)):
            text, error = one if isinstance(one, tuple) else (one, None)
            timing = Timing(0, 0, 0) if text == "begun" else None
            yield index, Completion("", text, "error" if error else "stop", timing=timing, error=error)

    written = []
    try:
        written.extend(map(json.loads, results(questions(len(said)), stream)))
    except HFPipeError as error:
        return [one["error"] and one["error"]["message"] for one in written], error
    return [one["error"] and one["error"]["message"] for one in written], None


GONE = ("", ServerUnavailable("Gone."))
CUT = ("half", ServerUnavailable("Cut."))
WRONG = ("", UsageError("Wrong."))
BROKEN = ("", BackendError("Broke."))


@pytest.mark.parametrize("error", [AccessDenied("No."), ModelNotFound("None.")])
def test_a_model_that_no_request_can_reach_ends_the_batch_at_once(error):
    assert served("a", ("", error), "b") == ([None], error)


@pytest.mark.parametrize(
    ("said", "written", "ended"),
    [
        (["a", GONE, GONE, GONE, "b"], [None], "Gone."),
        # In flight as it went away, and never answered.
        (["a", CUT, CUT, GONE, CUT, GONE, GONE], [None], "Gone."),
        # It came back.
        (["a", GONE, CUT, GONE, "b"], [None, "Gone.", "Cut.", "Gone.", None], None),
        ([GONE, GONE, BROKEN, GONE, GONE, "a"], ["Gone.", "Gone.", "Broke.", "Gone.", "Gone.", None], None),
        # Nothing that the server said is between them.
        ([WRONG, GONE, WRONG, GONE, WRONG, GONE, "a"], ["Wrong."], "Gone."),
        # In flight as it went away, and answered all the same.
        (["a", GONE, "begun", GONE, "begun", GONE], [None], "Gone."),
        (["a", GONE, "begun", GONE, "b"], [None, "Gone.", None, "Gone.", None], None),
        (["begun", "begun"], [None, None], None),
        # Nothing came after it.
        ([GONE], [], "Gone."),
        (["a", WRONG, GONE, WRONG], [None, "Wrong."], "Gone."),
        # A server that answers, and cuts each answer.
        (["a", *[CUT] * 250], [None, *["Cut."] * 200], "Cut."),
    ],
)
def test_a_server_that_is_unavailable_ends_the_batch_without_results_for_what_it_did_not_answer(said, written, ended):
    found, error = served(*said)
    assert found == written
    assert (error and error.message) == ended
