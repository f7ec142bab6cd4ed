"""What the paged OpenVINO engine does when memory runs out, on an engine that says so when it is told to."""

from collections.abc import Iterator
from dataclasses import replace

import openvino_genai as genai
import pytest

from hfpipe import backends, models
from hfpipe.backends.base import Backend
from hfpipe.errors import OutOfMemory
from hfpipe.types import LoadOptions, Sampling, TokenEvent, TokenRequest


class Memory:
    """An engine with room for so many requests at once, and for so many tokens of one. From step `after` on, a step
    with more of them fails; with `rejects`, one more is not taken."""

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
        raise RuntimeError("Exception from src/core/x.cpp:12:\n[CPU] Failed to allocate memory of 8 bytes\n")


GREEDY = [TokenRequest(f"g{n}", tuple(20 + (3 * n + 7 * i) % 300 for i in range(5 + 4 * n)), 6 + n) for n in range(9)]
PENALTY = [replace(one, id=f"p{one.id}", sampling=Sampling(repetition_penalty=1.3)) for one in GREEDY[:3]]
SAMPLED = [replace(one, id=f"s{one.id}", sampling=Sampling(temperature=1.0, seed=3)) for one in GREEDY[:3]]


def with_memory(backend: Backend, room: int, **more: object) -> Memory:
    backend._pipeline = Memory(backend._pipeline, room, **more)
    return backend._pipeline


def ends(backend: Backend, *requests: TokenRequest) -> tuple[dict[str, list[int]], dict[str, object]]:
    """The answers that were finished, and the errors of the others."""
    found: dict[str, list[int]] = {}
    errors: dict[str, object] = {}
    for event in backend.stream(requests):
        found.setdefault(event.request_id, []).extend(event.token_ids)
        if event.error:
            errors[event.request_id] = event.error
            del found[event.request_id]
    assert backend._active == {}
    return found, errors


@pytest.fixture
def roomy(tiny_llama_ov) -> Iterator[Backend]:
    options = LoadOptions(batch_size=8, exact=True)
    with backends.load("openvino", models.resolve(str(tiny_llama_ov)), options) as backend:
        yield backend


@pytest.mark.parametrize("rejects", [False, True], ids=["a step fails", "a request is not taken"])
@pytest.mark.parametrize("after", [0, 4], ids=["from the start", "in the middle"])
def test_out_of_memory_halves_the_window(roomy, rejects, after):
    """Greedy answers go on exactly from where they were, and later ones are generated in the smaller window."""
    requests = [*GREEDY, *PENALTY]
    whole, _ = ends(roomy, *requests)
    memory = with_memory(roomy, 3, rejects=rejects, after=after)
    assert ends(roomy, *requests) == (whole, {})
    assert memory.failures > 0
    assert roomy.batch_size in (2, 3)
    failures, memory.most = memory.failures, 0
    assert ends(roomy, *requests) == (whole, {})
    assert memory.failures == failures
    assert memory.most <= roomy.batch_size


def test_sampled_answers_begin_again_or_fail(roomy):
    """Before the first token they are drawn as they would have been; after it what was drawn is lost."""
    whole, _ = ends(roomy, *SAMPLED)
    with_memory(roomy, 2)
    assert ends(roomy, *SAMPLED) == (whole, {})
    roomy._pipeline, roomy.batch_size = roomy._pipeline.inside, 8
    with_memory(roomy, 3, after=2)
    found, errors = ends(roomy, *SAMPLED, *GREEDY[:3])
    assert sorted(errors) == sorted(one.id for one in SAMPLED)
    assert {type(error) for error in errors.values()} == {OutOfMemory}
    roomy._pipeline = roomy._pipeline.inside
    assert ends(roomy, *GREEDY[:3])[0] == found


def test_what_does_not_fit_alone_fails_and_leaves_the_window_whole(roomy):
    whole, _ = ends(roomy, *GREEDY)
    with_memory(roomy, 8, tokens=100)
    big = TokenRequest("big", tuple(range(20, 140)), 5)
    found, errors = ends(roomy, *GREEDY[:3], big, *GREEDY[3:])
    assert found == whole
    assert {name: type(error) for name, error in errors.items()} == {"big": OutOfMemory}
    assert roomy.batch_size == 8


def test_the_request_to_blame_fails_by_itself(roomy):
    """The engine does not say which it was: each is tried alone."""

    class Poisoned(Memory):
        bad: object = None

        def add_request(self, number: int, tensor: object, config: object) -> object:
            handle = super().add_request(number, tensor, config)
            self.bad = handle if tensor.shape[1] == 120 else self.bad
            return handle

        def step(self) -> None:
            if self.bad is not None and self.bad.get_status() == genai.GenerationStatus.RUNNING:
                raise RuntimeError("The device was lost")
            super().step()

    whole, _ = ends(roomy, *GREEDY)
    roomy._pipeline = Poisoned(roomy._pipeline, 8)
    bad = TokenRequest("bad", tuple(range(20, 140)), 5)
    found, errors = ends(roomy, *GREEDY[:3], bad, *GREEDY[3:])
    assert found == whole
    assert {name: error.message for name, error in errors.items()} == {"bad": "OpenVINO on CPU: The device was lost"}
    assert roomy.batch_size == 8


def test_nothing_fits(roomy):
    with_memory(roomy, 0)
    found, errors = ends(roomy, *GREEDY)
    assert found == {}
    assert len(errors) == len(GREEDY)


def test_what_was_given_back_can_be_cancelled(roomy):
    with_memory(roomy, 1)
    last: dict[str, object] = {}
    for event in roomy.stream([*GREEDY, *SAMPLED]):
        roomy.cancel("g7")
        roomy.cancel("sg2")
        last[event.request_id] = event
    assert {event.finish_reason for name, event in last.items() if name not in ("g7", "sg2")} == {"length"}
    assert (last["g7"], last["sg2"]) == (TokenEvent("g7", (), "stop"), TokenEvent("sg2", (), "stop"))


def test_leaving_a_stream_after_a_failure(roomy):
    memory = with_memory(roomy, 3)
    stream = roomy.stream(GREEDY)
    next(stream)
    assert memory.failures > 0
    stream.close()
    assert roomy._active == {}
    assert memory.live() == 0
    assert ends(roomy, *GREEDY)[1] == {}


def test_a_kv_cache_that_only_some_fit_into(monkeypatch, roomy, tiny_llama_ov):
    """The engine's own limit: what it puts off goes on by itself, what it gives up is tried again, and what is larger
    than all of the cache fails alone."""
    whole, _ = ends(roomy, *GREEDY, *SAMPLED)
    real = genai.SchedulerConfig

    def small() -> object:
        config = real()
        config.num_kv_blocks = 6
        return config

    monkeypatch.setattr(genai, "SchedulerConfig", small)
    big = TokenRequest("big", tuple(range(10, 390)), 5)
    options = LoadOptions(batch_size=8, exact=True)
    with backends.load("openvino", models.resolve(str(tiny_llama_ov)), options) as backend:
        found, errors = ends(backend, *GREEDY[:5], big, *GREEDY[5:], *SAMPLED)
        assert {name: type(error) for name, error in errors.items()} == {"big": OutOfMemory}
        assert found == whole
        assert backend.batch_size == 8
