"""How many requests the paged OpenVINO engine has in flight: as many as are asked for, and as memory has room for."""

import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hfpipe import backends, models
from hfpipe.backends.base import Backend
from hfpipe.backends.openvino import decoding
from hfpipe.backends.scheduling import SHARE
from hfpipe.errors import OutOfMemory
from hfpipe.types import LoadOptions, TokenEvent, TokenRequest

# Two layers with two heads of 16 keys and values, in float32.
PER_TOKEN = 2 * 2 * 2 * 16 * 4

REQUESTS = [TokenRequest(f"r{n}", tuple(20 + (3 * n + 7 * i) % 300 for i in range(4 + n)), 26 - n) for n in range(9)]
LARGE = TokenRequest("large", tuple(range(20, 100)), 20)

Room = Callable[[float], None]


def opened(folder: Path, **options: object) -> Backend:
    return backends.load("openvino", models.resolve(str(folder)), LoadOptions(**options))


@pytest.fixture
def engine(tiny_llama_ov) -> Iterator[Backend]:
    with opened(tiny_llama_ov, batch_size=8, exact=True) as backend:
        yield backend


@pytest.fixture
def room(monkeypatch, engine) -> Room:
    """Leaves memory for so many tokens, whatever the engine's cache has taken."""

    def leave(tokens: float) -> None:
        def available() -> int:
            return int(tokens * PER_TOKEN / SHARE) - engine._pipeline.get_metrics().cache_size_in_bytes

        monkeypatch.setattr(decoding, "available_memory", available)

    return leave


class Watched:
    """What a stream gave: answers, errors, the order of first tokens, and the most that was in the engine at once."""

    def __init__(self, backend: Backend, requests: Iterable[TokenRequest | None]) -> None:
        self.answers: dict[str, list[int]] = {}
        self.errors: dict[str, object] = {}
        self.most = self.most_tokens = 0
        for event in backend.stream(requests):
            self.answers.setdefault(event.request_id, []).extend(event.token_ids)
            if event.error:
                self.errors[event.request_id] = event.error
            inside = [flight for flight in backend._active.values() if flight.handle is not None]
            self.most = max(self.most, len(inside) + (event.finish_reason is not None))
            self.most_tokens = max(self.most_tokens, sum(flight.tokens for flight in inside))
        self.order = list(self.answers)
        assert backend._active == {}


def pulled_before_the_first_event(backend: Backend, requests: list[TokenRequest]) -> list[str]:
    pulled: list[str] = []

    def counted() -> Iterator[TokenRequest]:
        for request in requests:
            pulled.append(request.id)
            yield request

    stream = backend.stream(counted())
    next(stream)
    seen = list(pulled)
    stream.close()
    assert backend._active == {}
    return seen


def test_the_window_is_full_where_memory_is_not_short(engine, room):
    room(8 * 30)
    assert pulled_before_the_first_event(engine, REQUESTS) == [f"r{n}" for n in range(8)]
    assert engine.info.detail["window"] == "8"


def test_what_memory_has_no_room_for_waits(engine, room):
    """Each comes to 30 tokens; one more is pulled to see that it does not fit."""
    room(1e6)
    whole = Watched(engine, REQUESTS)
    room(3 * 30 + 29)
    assert pulled_before_the_first_event(engine, REQUESTS) == ["r0", "r1", "r2", "r3"]
    short = Watched(engine, REQUESTS)
    assert (short.answers, short.errors, short.order) == (whole.answers, {}, whole.order)
    assert (whole.most, short.most) == (8, 3)
    assert (whole.most_tokens, short.most_tokens) == (8 * 30, 3 * 30)
    assert engine.batch_size == 8


def test_a_smaller_window_is_kept(engine, room):
    room(1e6)
    engine.batch_size = 2
    assert Watched(engine, REQUESTS).most == 2


@pytest.mark.parametrize("tokens", [0, 29, 30, 59])
def test_one_is_always_in_flight(engine, room, tokens):
    room(1e6)
    whole = Watched(engine, REQUESTS)
    room(tokens)
    found = Watched(engine, REQUESTS)
    assert (found.answers, found.errors, found.most) == (whole.answers, {}, 1)


def test_a_large_one_waits_at_the_head_and_runs_alone(engine, room):
    """What came after it and would fit does not overtake it."""
    requests = [*REQUESTS[:3], LARGE, *REQUESTS[3:]]
    room(1e6)
    whole = Watched(engine, requests)
    room(90)
    found = Watched(engine, requests)
    assert (found.answers, found.errors) == (whole.answers, {})
    assert found.order == [request.id for request in requests]
    assert found.most == 3
    assert found.most_tokens == LARGE.max_tokens + len(LARGE.token_ids)


def test_one_too_large_for_the_engine_fails_alone(engine, room):
    """The engine's own word, where it does not fit alone either."""
    room(90)
    whole = Watched(engine, REQUESTS)
    add = engine._pipeline.add_request

    class Full:
        def __getattr__(self, name: str) -> object:
            return getattr(add.__self__, name)

        def add_request(self, number: int, tensor: object, config: object) -> object:
            if tensor.shape[1] == len(LARGE.token_ids):
                raise MemoryError
            return add(number, tensor, config)

    engine._pipeline = Full()
    found = Watched(engine, [*REQUESTS[:3], LARGE, *REQUESTS[3:]])
    assert {name: type(error) for name, error in found.errors.items()} == {"large": OutOfMemory}
    assert {**found.answers, "large": []} == {**whole.answers, "large": []}
    assert engine.batch_size == 8


def test_what_waits_for_memory_can_be_cancelled(engine, room):
    room(2 * 30)
    events: list[TokenEvent] = []
    for event in engine.stream(REQUESTS[:4]):
        engine.cancel("r2")
        events.append(event)
    assert [event for event in events if event.request_id == "r2"] == [TokenEvent("r2", (), "stop")]
    ends = {event.request_id: event.finish_reason for event in events if event.finish_reason}
    assert ends == {"r0": "length", "r1": "length", "r2": "stop", "r3": "length"}
    assert engine._active == {}


def test_what_is_refused_is_refused_where_memory_is_short_too(engine, room):
    room(0)
    found = Watched(engine, [REQUESTS[0], TokenRequest("empty", (), 5), TokenRequest("far", (9999,), 5), REQUESTS[1]])
    assert sorted(found.errors) == ["empty", "far"]
    assert {len(answer) for answer in found.answers.values()} == {0, 25, 26}


def test_streams_share_the_memory_of_the_engine(engine, room):
    """The second has one in flight, and no more until the first has made room."""
    room(4 * 30)
    whole = Watched(engine, REQUESTS)
    first = engine.stream(REQUESTS[:3])
    next(first)
    others = [replace(request, id=f"o{request.id}") for request in REQUESTS[:3]]
    second = engine.stream(others)
    next(second)
    inside = [name for name, flight in engine._active.items() if flight.handle is not None]
    assert inside == ["r0", "r1", "r2", "or0"]
    left: dict[str, int] = {}
    for event in [*second, *first]:
        left[event.request_id] = left.get(event.request_id, 0) + len(event.token_ids)
    assert left == {
        request.id: len(whole.answers[request.id.removeprefix("o")]) - (request.id in ("r0", "or0"))
        for request in [*REQUESTS[:3], *others]
    }
    assert engine._active == {}


def test_a_cache_that_the_engine_has_taken_is_room(monkeypatch, engine):
    """It is not given back, and later streams use it again."""
    monkeypatch.setattr(decoding, "available_memory", lambda: 2**40)
    Watched(engine, REQUESTS)
    taken = engine._pipeline.get_metrics().cache_size_in_bytes
    assert taken > 0
    monkeypatch.setattr(decoding, "available_memory", lambda: 0)
    assert engine._token_budget() == SHARE * taken // PER_TOKEN


def test_a_model_that_does_not_say_what_it_takes_has_no_bound(monkeypatch, tiny_llama_ov):
    monkeypatch.setattr(decoding, "available_memory", lambda: 0)
    source = models.resolve(str(tiny_llama_ov))
    bare = replace(source, config={"vocab_size": source.config["vocab_size"]})
    with backends.load("openvino", bare, LoadOptions(batch_size=8)) as backend:
        assert Watched(backend, REQUESTS).most == 8


def test_the_memory_of_a_gpu_is_its_own(monkeypatch, tiny_llama_ov, tmp_path):
    """The engine itself takes no more of it than there is."""
    folder = Path(shutil.copytree(tiny_llama_ov, tmp_path / "copy"))
    monkeypatch.setattr(decoding.PagedBackend, "__init__", lambda *_: None)
    for device, bounded in {"CPU": True, "AUTO": True, "GPU.0": False, "NPU": False}.items():
        monkeypatch.setattr("hfpipe.backends.openvino.loading.check_device", lambda *_, name=device: name)
        assert (opened(folder, batch_size=2)._bytes_per_token is not None) == bounded
