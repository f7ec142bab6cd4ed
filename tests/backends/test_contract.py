"""What every backend must do, on the same tiny models, whatever its engine."""

import itertools
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache

import pytest

from hfpipe.backends.base import Backend
from hfpipe.backends.openvino.loading import EXACT
from hfpipe.errors import BackendError, HFPipeError
from hfpipe.types import FinishReason, Sampling, TokenEvent, TokenRequest
from tests import tiny
from tests.backends import running

WINDOW = 4
ENGINES = {
    "echo": ("echo", {"batch_size": WINDOW}),
    "torch": ("torch", {"batch_size": WINDOW}),
    "torch-seq2seq": ("torch", {"batch_size": WINDOW}),
    "openvino-single": ("openvino", {"batch_size": 1, "exact": True}),
    "openvino-paged": ("openvino", {"batch_size": WINDOW, "exact": True}),
    "openvino-seq2seq": ("openvino", {"batch_size": WINDOW, "ov_config": EXACT}),
    "torch-lookup": ("torch", {"batch_size": 1, "prompt_lookup": 5}),
    "openvino-lookup": ("openvino", {"batch_size": WINDOW, "exact": True, "prompt_lookup": 5}),
}
REAL = [name for name in ENGINES if name != "echo"]
SHARED = [name for name in ENGINES if name not in ("openvino-single", "torch-lookup")]
NO_END = frozenset({tiny.END_OF_TEXT})
LONG = 400


@dataclass
class Answer:
    token_ids: list[int] = field(default_factory=list)
    reason: FinishReason | None = None
    error: HFPipeError | None = None


@pytest.fixture(scope="session")
def load(tiny_llama, tiny_llama_ov, tiny_seq2seq, tiny_seq2seq_ov):
    """A new backend over the tiny Llama, or the tiny mBART, of a name in ENGINES."""

    def loaded(name: str) -> Backend:
        engine, options = ENGINES[name]
        if name.endswith("seq2seq"):
            folder_of = tiny_seq2seq_ov if engine == "openvino" else tiny_seq2seq
            return running.load(engine, folder_of("mbart"), **options)
        return running.load(engine, tiny_llama_ov if engine == "openvino" else tiny_llama, **options)

    return loaded


@pytest.fixture(scope="module")
def loaded(load):
    """The backend of a name in ENGINES, loaded once."""
    made = cache(load)
    yield made
    for name in ENGINES:
        made(name).close()


@pytest.fixture(params=ENGINES)
def engine(request, loaded) -> Backend:
    return loaded(request.param)


@pytest.fixture(params=REAL)
def real(request, loaded) -> Backend:
    """An engine that has a model."""
    return loaded(request.param)


@pytest.fixture(params=SHARED)
def shared(request, loaded) -> Backend:
    """An engine that has several requests in flight at once."""
    return loaded(request.param)


# How many requests an engine may take before one of them has ended; torch looks for similar ones among eight batches.
WINDOWS = {
    "echo": WINDOW,
    "torch": 8 * WINDOW,
    "torch-seq2seq": 8 * WINDOW,
    "openvino-seq2seq": 8 * WINDOW,
    "openvino-single": 1,
    "openvino-paged": WINDOW,
    "torch-lookup": 1,
    "openvino-lookup": WINDOW,
}


def prompt(number: int, length: int = 40) -> tuple[int, ...]:
    """Some ids: other ones for another number, none of them special, none twice."""
    return tuple(10 + (7 * number + 3 * i) % 300 for i in range(length))


def ask(number: int, length: int = 40, *, max_tokens: int = 12, **more) -> TokenRequest:
    return TokenRequest(f"r{number}", prompt(number, length), max_tokens, **{"eos_token_ids": NO_END, **more})


def collect(events: Iterable[TokenEvent], answers: dict[str, Answer] | None = None) -> dict[str, Answer]:
    """The answers of whole streams. Nothing may follow a request's final event."""
    answers = {} if answers is None else answers
    for event in events:
        answer = answers.setdefault(event.request_id, Answer())
        assert answer.reason is None, f"{event} after the final event"
        assert (event.error is not None) == (event.finish_reason == "error")
        answer.token_ids += event.token_ids
        answer.reason, answer.error = event.finish_reason, event.error
    return answers


def answers_to(backend: Backend, *requests: TokenRequest) -> dict[str, Answer]:
    answers = collect(backend.stream(requests))
    assert sorted(answers) == sorted(request.id for request in requests)
    assert all(answer.reason is not None for answer in answers.values())
    return answers


def answer_to(backend: Backend, request: TokenRequest) -> Answer:
    return answers_to(backend, request)[request.id]


def works(backend: Backend) -> bool:
    return len(answer_to(backend, ask(99, max_tokens=3)).token_ids) == 3


# Requests in, events out


def test_every_request_ends_once(engine):
    requests = [ask(n, 3 + n, max_tokens=2 + n % 3) for n in range(11)]
    answers = answers_to(engine, *requests)
    ends = {name: (len(answer.token_ids), answer.reason) for name, answer in answers.items()}
    assert ends == {request.id: (request.max_tokens, "length") for request in requests}
    assert list(engine.stream(())) == []


@pytest.mark.parametrize("name", ENGINES)
def test_pulls_only_what_it_has_room_for(loaded, name):
    engine, pulled = loaded(name), 0

    def requests() -> Iterator[TokenRequest]:
        nonlocal pulled
        for number in range(9):
            pulled += 1
            yield ask(number, max_tokens=2 + number % 4)

    stream = engine.stream(requests())
    assert pulled == 0
    finished = 0
    for event in stream:
        assert pulled - finished <= WINDOWS[name]
        finished += event.finish_reason is not None
    assert pulled == finished == 9


def test_several_are_in_flight(shared):
    order = [event.request_id for event in shared.stream([ask(n, max_tokens=5) for n in range(WINDOW)])]
    assert set(order[:WINDOW]) == {f"r{n}" for n in range(WINDOW)}


def test_none_as_yet(engine):
    """The engine goes on with what it has, and asks again: what comes then is answered in the same stream."""
    ended, asked = set(), 0
    requests = [ask(n, 10 + n, max_tokens=3 + n % 3) for n in range(9)]
    alone = {request.id: answer_to(engine, request) for request in requests}

    def two_ahead() -> Iterator[TokenRequest | None]:
        nonlocal asked
        for number, request in enumerate(requests):
            while number >= len(ended) + 2:
                asked += 1
                yield None
            yield request

    answers = {}
    for event in engine.stream(two_ahead()):
        collect([event], answers)
        ended |= {event.request_id} if event.finish_reason else set()
        assert len(answers) - len(ended) <= 2
    assert answers == alone
    assert asked or engine.batch_size == 1


def test_none_while_nothing_is_in_flight(engine):
    """It is asked again at once. Between bad requests, too, and at the end."""
    bad = TokenRequest("bad", (), 5)
    answers = collect(engine.stream([None, ask(1), None, None, bad, None, ask(2), None]))
    assert {name: answer.reason for name, answer in answers.items()} == {"r1": "length", "bad": "error", "r2": "length"}
    assert list(engine.stream([None, None])) == []


def test_an_error_of_the_requests_is_the_callers(engine):
    def requests() -> Iterator[TokenRequest]:
        yield ask(0)
        raise KeyError("the caller's own")

    with pytest.raises(KeyError, match="the caller's own"):
        collect(engine.stream(requests()))
    assert works(engine)


# How an answer ends


@pytest.mark.parametrize(
    ("after", "more", "tokens"),
    [(6, False, 20), (0, False, 20), (6, True, 20), (6, False, 7)],
    ids=["in the middle", "at once", "any of several", "as the last that is allowed"],
)
def test_end_token(engine, after, more, tokens):
    """It is the last of the token ids, and not looked at again."""
    whole = answer_to(engine, ask(1, max_tokens=20)).token_ids
    at = first_time(whole, after)
    ends = {whole[at]} | ({tiny.IM_END, tiny.END_OF_TEXT, *whole[at + 1 :]} - set(whole[:at]) if more else set())
    limit = at + 1 if tokens == 7 else tokens
    answer = answer_to(engine, ask(1, max_tokens=limit, eos_token_ids=frozenset(ends)))
    assert answer == Answer(whole[: at + 1], "stop")


def test_without_end_tokens_the_models_own_is_no_end(real):
    """Only the request says what ends it, not the folder's generation_config.json."""
    whole = answer_to(real, ask(1, max_tokens=30, eos_token_ids=frozenset()))
    assert (len(whole.token_ids), whole.reason) == (30, "length")


def test_each_request_of_a_batch_ends_its_own_way(engine):
    whole = answer_to(engine, ask(2, max_tokens=30)).token_ids
    at = first_time(whole, 8)
    requests = [
        ask(1, 5, max_tokens=4),
        replace(ask(2, max_tokens=30), eos_token_ids=frozenset({whole[at]})),
        ask(3, 25, max_tokens=23),
        ask(4, 17, max_tokens=1),
        ask(5, 12, max_tokens=9),
    ]
    alone = {request.id: answer_to(engine, request) for request in requests}
    together = answers_to(engine, *requests)
    assert together == alone
    assert together["r2"] == Answer(whole[: at + 1], "stop")
    lengths = {name: len(answer.token_ids) for name, answer in together.items() if answer.reason == "length"}
    assert lengths == {"r1": 4, "r3": 23, "r4": 1, "r5": 9}


def test_those_that_begin_while_others_run_answer_as_alone(engine):
    """Greedy and drawn, at places that others leave at any time."""
    samplings = [Sampling(), Sampling(temperature=1.0, seed=7), Sampling(repetition_penalty=1.3)]
    requests = [ask(n, 1 + 7 * n % 50, max_tokens=1 + 5 * n % 17, sampling=samplings[n % 3]) for n in range(4 * WINDOW)]
    alone = {request.id: answer_to(engine, request) for request in requests}
    assert answers_to(engine, *requests) == alone


def first_time(tokens: list[int], after: int) -> int:
    """The place of a token that has not come before."""
    return next(i for i in range(after, len(tokens)) if tokens[i] not in tokens[:i])


# Cancelling


def test_cancel_stops_at_once(shared):
    """These engines make a step only when they are asked for the next event."""
    answers = {}
    for event in shared.stream([ask(1, LONG, max_tokens=LONG)]):
        collect([event], answers)
        shared.cancel("r1")
    assert answers["r1"] == Answer(answers["r1"].token_ids, "stop")
    assert len(answers["r1"].token_ids) == 1


def test_cancel_one_of_several(shared):
    requests = [ask(n, 20 + n, max_tokens=20) for n in range(WINDOW)]
    alone = {request.id: answer_to(shared, request) for request in requests}
    answers = {}
    for event in shared.stream(requests):
        collect([event], answers)
        if event.request_id == "r2" and len(answers["r2"].token_ids) == 5:
            shared.cancel("r2")
    cancelled, whole = answers.pop("r2"), alone.pop("r2")
    assert answers == alone
    assert cancelled.reason == "stop"
    assert cancelled.token_ids == whole.token_ids[: len(cancelled.token_ids)]
    assert len(cancelled.token_ids) <= 6


def test_cancel_before_its_first_token(shared):
    """In flight already, or not pulled yet."""
    answers = {}
    for event in shared.stream([ask(n, max_tokens=9) for n in range(3 * WINDOW)]):
        collect([event], answers)
        shared.cancel("r3")
        shared.cancel("r11")
    assert [answers.pop(name).reason for name in ("r3", "r11")] == ["stop"] * 2
    assert {answer.reason for answer in answers.values()} == {"length"}


def test_cancel_of_what_is_not_in_flight(engine):
    for name in ("nobody", "r1"):
        engine.cancel(name)
        assert answer_to(engine, ask(1, max_tokens=5)).reason == "length"
    for event in engine.stream([ask(1, max_tokens=3), ask(2, max_tokens=3)]):
        if event.finish_reason is not None:
            engine.cancel(event.request_id)
    assert {answer.reason for answer in answers_to(engine, ask(1), ask(2)).values()} == {"length"}


def test_cancel_from_another_thread(engine):
    answers = {}
    for event in engine.stream([ask(1, LONG, max_tokens=LONG)]):
        collect([event], answers)
        if len(answers["r1"].token_ids) == 2:
            thread = threading.Thread(target=engine.cancel, args=("r1",))
            thread.start()
            thread.join()
    assert answers["r1"].reason == "stop"
    assert len(answers["r1"].token_ids) < LONG
    assert works(engine)


# Failing


@pytest.mark.parametrize(
    "token_ids",
    [(5, tiny.VOCABULARY, 6), (5, -1), (2**40,), ()],
    ids=["beyond the vocabulary", "negative", "huge", "empty"],
)
def test_a_bad_request_fails_alone(engine, token_ids):
    bad = TokenRequest("bad", token_ids, 5)
    good = [ask(n, 10 + n) for n in range(5)]
    alone = {request.id: answer_to(engine, request) for request in good}
    answers = answers_to(engine, *good[:2], bad, *good[2:])
    failed = answers.pop("bad")
    assert (failed.token_ids, failed.reason) == ([], "error")
    assert isinstance(failed.error, HFPipeError)
    assert answers == alone


# Drawing tokens. Which ones, test_exact.py shows.


def test_a_seed_is_for_what_is_drawn(real):
    greedy, drawn = (
        [replace(ask(1, max_tokens=20, sampling=replace(sampling, seed=n)), id=str(n)) for n in range(6)]
        for sampling in (Sampling(), Sampling(temperature=1.0))
    )
    assert len({tuple(answer.token_ids) for answer in answers_to(real, *greedy).values()}) == 1
    assert len({tuple(answer.token_ids) for answer in answers_to(real, *drawn).values()}) == 6


def test_each_request_draws_for_itself(real):
    """Alone or beside others, greedy or not."""
    requests = [
        ask(1, 9, max_tokens=15, sampling=Sampling(temperature=1.0, seed=7)),
        ask(2, 31),
        ask(3, 20, sampling=Sampling(temperature=0.7, top_k=20, top_p=0.9, min_p=0.01, seed=3)),
        ask(4, 20, sampling=Sampling(repetition_penalty=1.3)),
        ask(5, 11, sampling=Sampling(temperature=2.0, repetition_penalty=1.2, seed=2**63 - 1)),
    ]
    alone = {request.id: answer_to(real, request) for request in requests}
    assert answers_to(real, *requests) == alone


# Streams that are left, nested, or side by side


@pytest.mark.parametrize(("begun", "closed"), [(True, True), (True, False), (False, False)])
def test_a_stream_that_is_left(engine, begun, closed):
    stream = engine.stream([ask(n, LONG, max_tokens=LONG) for n in range(6)])
    if begun:
        next(stream)
    if closed:
        stream.close()
    del stream
    assert engine._active == {}
    assert works(engine)


def test_nested_streams(engine):
    """An engine with one request at a time finishes the first before it begins the second; what is left can be read."""
    alone = [answer_to(engine, ask(n, max_tokens=5)) for n in (1, 2)]
    outer = engine.stream([ask(1, max_tokens=5)])
    first = next(outer)
    inner = answer_to(engine, ask(2, max_tokens=5))
    assert [collect([first, *outer])["r1"], inner] == alone


def test_streams_in_two_threads(engine):
    requests = [[ask(n, 10 + n, max_tokens=10 + n) for n in (start, start + 1, start + 2)] for start in (0, 10, 20)]
    alone = [answers_to(engine, *some) for some in requests]
    together: dict[int, dict[str, Answer]] = {}
    threads = [
        threading.Thread(target=lambda i=i, some=some: together.__setitem__(i, answers_to(engine, *some)))
        for i, some in enumerate(requests)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [together.get(i) for i in range(3)] == alone


# Closing


@pytest.mark.parametrize("name", ENGINES)
def test_nothing_streams_from_a_closed_backend(load, name):
    with load(name) as backend:
        assert works(backend)
        backend.close()
    backend.close()
    with pytest.raises(BackendError, match="closed"):
        next(backend.stream([ask(1)]))
    backend.cancel("r1")


@pytest.mark.parametrize("name", ENGINES)
def test_closing_under_an_open_stream(load, name):
    """Each request, in flight or still to come, ends with an error event that says so."""
    backend = load(name)
    stream = backend.stream(ask(n, LONG // 2, max_tokens=LONG // 2) for n in range(9))
    first = next(stream)
    backend.close()
    answers = collect([first, *stream])
    assert sorted(answers) == [f"r{n}" for n in range(9)]
    for answer in answers.values():
        assert isinstance(answer.error, BackendError)
        assert "closed" in answer.error.message


@pytest.mark.parametrize("name", ENGINES)
def test_closing_from_another_thread(load, name):
    """Whatever the engine is doing, what it has not finished by then ends with the error."""
    backend, closing = load(name), threading.Event()

    def close() -> None:
        backend.close()
        closing.set()

    def requests() -> Iterator[TokenRequest]:
        for number in itertools.count():
            yield ask(number, LONG, max_tokens=LONG)
            if closing.is_set():
                return

    thread = threading.Timer(0.1, close)
    thread.start()
    answers = list(collect(backend.stream(requests())).values())
    thread.join()
    assert "closed" in answers[-1].error.message
    for answer in answers:
        finished = len(answer.token_ids) == LONG or answer.token_ids[-1:] == [*NO_END]
        assert finished or "closed" in str(answer.error)


@pytest.mark.parametrize("name", ENGINES)
def test_says_what_it_runs_on(loaded, name):
    backend = loaded(name)
    assert backend.info.name == backend.name == ENGINES[name][0]
    assert backend.info.device
    assert backend.info.dtype
