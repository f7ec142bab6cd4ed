"""How many requests the paged OpenVINO engine has in flight: as many as are asked for, as memory has room for, and
fewer where it runs out, on an engine that says so when it is told to."""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import openvino_genai as genai
import pytest

from hfpipe import backends, models
from hfpipe.backends.base import Backend
from hfpipe.backends.openvino import decoding
from hfpipe.backends.scheduling import SHARE
from hfpipe.errors import BackendError, OutOfMemory
from hfpipe.types import LoadOptions, Sampling, TokenEvent, TokenRequest
from tests.backends.running import answers, failures, load

# Two layers with two heads of 16 keys and values, in float32.
PER_TOKEN = 2 * 2 * 2 * 16 * 4


@pytest.fixture(scope="module")
def loaded(tiny_llama_ov) -> Iterator[Backend]:
    with load("openvino", tiny_llama_ov, batch_size=8, exact=True) as backend:
        yield backend


@pytest.fixture
def engine(loaded) -> Iterator[Backend]:
    """The backend as it was loaded."""
    inside, size = loaded._pipeline, loaded.batch_size
    yield loaded
    loaded._pipeline, loaded.batch_size = inside, size


# Memory that runs out


class Memory:
    """An engine with room for so many requests at once, and for so many tokens of one. From step `after` on, a step
    with more of them fails; with `rejects`, one more is not taken."""

    message = "Failed to allocate memory of 8 bytes"

    def __init__(self, inside: object, room: int, *, after: int = 0, rejects: bool = False, tokens: int = 1000) -> None:
        self.inside = inside
        self.room, self.after, self.rejects, self.tokens = room, after, rejects, tokens
        self.handles: list[object] = []
        self.failures = self.steps = self.most = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self.inside, name)

    def live(self) -> int:
        return sum(one.get_status() == genai.GenerationStatus.RUNNING for one in self.handles)

    def add_request(self, number: int, tensor: object, config: object) -> object:
        full = self.rejects and self.steps >= self.after and self.live() >= self.room
        if full or tensor.shape[1] > self.tokens:
            self.fail()
        self.handles.append(self.inside.add_request(number, tensor, config))
        return self.handles[-1]

    def step(self) -> None:
        self.steps += 1
        self.most = max(self.most, self.live())
        if self.steps > self.after and self.live() > self.room and not self.rejects:
            self.fail()
        self.inside.step()

    def fail(self) -> None:
        self.failures += 1
        raise RuntimeError(f"Exception from src/core/x.cpp:12:\n[CPU] {self.message}\n")


GREEDY = [TokenRequest(f"g{n}", tuple(20 + (3 * n + 7 * i) % 300 for i in range(5 + 4 * n)), 6 + n) for n in range(9)]
PENALTY = [replace(one, id=f"p{one.id}", sampling=Sampling(repetition_penalty=1.3)) for one in GREEDY[:3]]
SAMPLED = [replace(one, id=f"s{one.id}", sampling=Sampling(temperature=1.0, seed=3)) for one in GREEDY[:3]]


def with_memory(backend: Backend, room: int, **more: object) -> Memory:
    backend._pipeline = Memory(backend._pipeline, room, **more)
    return backend._pipeline


BIG = TokenRequest("big", tuple(range(20, 140)), 5)


@pytest.mark.parametrize("rejects", [False, True], ids=["a step fails", "a request is not taken"])
@pytest.mark.parametrize("after", [0, 4], ids=["from the start", "in the middle"])
def test_out_of_memory_halves_the_window(engine, rejects, after):
    """Greedy answers go on exactly from where they were, and later ones are generated in the smaller window."""
    requests = [*GREEDY, *PENALTY]
    whole = answers(engine, requests)
    memory = with_memory(engine, 3, rejects=rejects, after=after)
    assert answers(engine, requests) == whole
    assert memory.failures > 0
    assert engine.batch_size in (2, 3)
    failed, memory.most = memory.failures, 0
    assert answers(engine, requests) == whole
    assert memory.failures == failed
    assert memory.most <= engine.batch_size


def test_sampled_answers_begin_again_or_fail(engine):
    """Before the first token they are drawn as they would have been; after it what was drawn is lost."""
    whole = answers(engine, [*GREEDY[:3], *SAMPLED])
    inside = with_memory(engine, 2).inside
    assert answers(engine, SAMPLED) == {one.id: whole[one.id] for one in SAMPLED}
    engine._pipeline, engine.batch_size = inside, 8
    with_memory(engine, 3, after=2)
    found = answers(engine, [*SAMPLED, *GREEDY[:3]])
    assert failures(found) == {one.id: OutOfMemory for one in SAMPLED}
    assert found == {one.id: whole[one.id] for one in GREEDY[:3]}


class Poisoned(Memory):
    """An engine that is lost while it has one of the length of BIG."""

    bad: object = None

    def add_request(self, number: int, tensor: object, config: object) -> object:
        handle = super().add_request(number, tensor, config)
        self.bad = handle if tensor.shape[1] == len(BIG.token_ids) else self.bad
        return handle

    def step(self) -> None:
        if self.bad is not None and self.bad.get_status() == genai.GenerationStatus.RUNNING:
            raise RuntimeError("The device was lost")
        super().step()


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda inside: Memory(inside, 8, tokens=100), "[CPU] Failed to allocate memory"),
        (lambda inside: Poisoned(inside, 8), "OpenVINO on CPU: The device was lost"),
    ],
    ids=["too large", "poison"],
)
def test_the_request_to_blame_fails_by_itself(engine, broken, message):
    """The engine does not say which it was: each is tried alone. The window stays whole."""
    whole = answers(engine, GREEDY)
    engine._pipeline = broken(engine._pipeline)
    found = answers(engine, [*GREEDY[:3], BIG, *GREEDY[3:]])
    assert message in found.pop("big").message
    assert found == whole
    assert engine.batch_size == 8


@pytest.mark.parametrize("error", [OutOfMemory, BackendError])
def test_nothing_works(engine, error):
    """Each request ends with an event, and the next stream finds the engine as it was."""
    memory = with_memory(engine, 0)
    memory.message = "Failed to allocate memory" if error is OutOfMemory else "The device was lost"
    assert failures(answers(engine, GREEDY)) == {one.id: error for one in GREEDY}
    engine._pipeline = memory.inside
    assert not failures(answers(engine, GREEDY))


def test_what_was_given_back_can_be_cancelled(engine):
    with_memory(engine, 1)
    last: dict[str, object] = {}
    for event in engine.stream([*GREEDY, *SAMPLED]):
        engine.cancel("g7")
        engine.cancel("sg2")
        last[event.request_id] = event
    assert [last.pop(name) for name in ("g7", "sg2")] == [TokenEvent(name, (), "stop") for name in ("g7", "sg2")]
    assert {event.finish_reason for event in last.values()} == {"length"}


def test_leaving_a_stream_after_a_failure(engine):
    memory = with_memory(engine, 3)
    stream = engine.stream(GREEDY)
    next(stream)
    assert memory.failures > 0
    stream.close()
    assert engine._active == {}
    assert memory.live() == 0
    assert not failures(answers(engine, GREEDY))


def test_a_kv_cache_that_only_some_fit_into(monkeypatch, engine, tiny_llama_ov):
    """The engine's own limit: what it puts off goes on by itself, what it gives up is tried again, and what is larger
    than all of the cache fails alone."""
    whole = answers(engine, [*GREEDY, *SAMPLED])
    real = genai.SchedulerConfig

    def small() -> object:
        config = real()
        config.num_kv_blocks = 6
        return config

    monkeypatch.setattr(genai, "SchedulerConfig", small)
    big = TokenRequest("big", tuple(range(10, 390)), 5)
    with load("openvino", tiny_llama_ov, batch_size=8, exact=True) as backend:
        found = answers(backend, [*GREEDY[:5], big, *GREEDY[5:], *SAMPLED])
        assert failures(found) == {"big": OutOfMemory}
        assert found == whole
        assert backend.batch_size == 8


# Memory that is short from the start

REQUESTS = [TokenRequest(f"r{n}", tuple(20 + (3 * n + 7 * i) % 300 for i in range(4 + n)), 26 - n) for n in range(9)]
LARGE = TokenRequest("large", tuple(range(20, 100)), 20)


@pytest.fixture
def room(monkeypatch, engine) -> Callable[[float], None]:
    """Leaves memory for so many tokens, whatever the engine's cache has taken."""

    def leave(tokens: float) -> None:
        def available() -> int:
            return int(tokens * PER_TOKEN / SHARE) - engine._pipeline.get_metrics().cache_size_in_bytes

        monkeypatch.setattr(decoding, "available_memory", available)

    return leave


def in_flight(backend: Backend) -> list[str]:
    return [name for name, flight in backend._active.items() if flight.handle is not None]


def watched(backend: Backend, requests: list[TokenRequest]) -> tuple[dict[str, list[int]], int, int]:
    """The answers, in the order of their first tokens; how many were pulled before; and the most in flight at once."""
    found: dict[str, list[int]] = {}
    pulled: list[int] = []
    most, left = 0, iter(requests)
    for event in backend.stream(left):
        pulled.append(len(requests) - left.__length_hint__())
        found.setdefault(event.request_id, []).extend(event.token_ids)
        most = max(most, len(in_flight(backend)) + (event.finish_reason is not None))
    assert backend._active == {}
    return found, pulled[0], most


@pytest.mark.parametrize(
    ("tokens", "pulled", "most"), [(8 * 30, 8, 8), (4 * 30 - 1, 4, 3), (59, 2, 1), (30, 2, 1), (29, 2, 1), (0, 2, 1)]
)
def test_what_memory_has_no_room_for_waits(engine, room, tokens, pulled, most):
    """Each comes to 30 tokens; one more is pulled to see that it does not fit, and one is always in flight."""
    room(1e6)
    whole, *_ = watched(engine, REQUESTS)
    room(tokens)
    assert watched(engine, REQUESTS) == (whole, pulled, most)
    assert list(whole) == [request.id for request in REQUESTS]
    assert engine.info.detail["window"] == str(engine.batch_size) == "8"


def test_a_large_one_waits_at_the_head_and_runs_alone(engine, room):
    """What came after it and would fit does not overtake it."""
    room(90)
    beside = []
    for event in engine.stream([*REQUESTS[:3], LARGE, *REQUESTS[3:]]):
        beside += [in_flight(engine)] if event.request_id == "large" and event.finish_reason is None else []
    assert beside == [["large"]] * (LARGE.max_tokens - 1)


def test_what_waits_for_memory_can_be_cancelled(engine, room):
    room(2 * 30)
    events: list[TokenEvent] = []
    for event in engine.stream(REQUESTS[:4]):
        engine.cancel("r2")
        events.append(event)
    assert [event for event in events if event.request_id == "r2"] == [TokenEvent("r2", (), "stop")]
    assert [event.finish_reason for event in events if event.finish_reason].count("length") == 3


def test_streams_share_the_memory_of_the_engine(engine, room):
    """The second has one in flight, and no more until the first has made room."""
    room(4 * 30)
    first = engine.stream(REQUESTS[:3])
    second = engine.stream([replace(request, id=f"o{request.id}") for request in REQUESTS[:3]])
    events = [next(first), next(second)]
    assert in_flight(engine) == ["r0", "r1", "r2", "or0"]
    left = Counter(event.request_id for event in [*events, *second, *first])
    assert left == {name: 26 - n for n in range(3) for name in (f"r{n}", f"or{n}")}
    assert engine._active == {}


def test_a_cache_that_the_engine_has_taken_is_room(monkeypatch, engine):
    """It is not given back, and later streams use it again."""
    monkeypatch.setattr(decoding, "available_memory", lambda: 2**40)
    answers(engine, REQUESTS)
    taken = engine._pipeline.get_metrics().cache_size_in_bytes
    assert taken > 0
    monkeypatch.setattr(decoding, "available_memory", lambda: 0)
    assert engine._token_budget() == SHARE * taken // PER_TOKEN


def test_a_model_that_does_not_say_what_it_takes_has_no_bound(monkeypatch, tiny_llama_ov):
    monkeypatch.setattr(decoding, "available_memory", lambda: 0)
    source = models.resolve(str(tiny_llama_ov))
    bare = replace(source, config={"vocab_size": source.config["vocab_size"]})
    with backends.load("openvino", bare, LoadOptions(batch_size=8)) as backend:
        assert watched(backend, REQUESTS)[2] == 8


def test_the_memory_of_a_gpu_is_its_own(monkeypatch, tiny_llama_ov, tmp_path):
    """The engine itself takes no more of it than there is."""
    folder = Path(shutil.copytree(tiny_llama_ov, tmp_path / "copy"))
    monkeypatch.setattr(decoding.PagedBackend, "__init__", lambda backend, *_, **__: setattr(backend, "batch_size", 2))
    for device, bounded in {"CPU": True, "AUTO": True, "GPU.0": False, "NPU": False}.items():
        monkeypatch.setattr("hfpipe.backends.openvino.loading.check_device", lambda *_, name=device: name)
        assert (load("openvino", folder, batch_size=2)._bytes_per_token is not None) == bounded
