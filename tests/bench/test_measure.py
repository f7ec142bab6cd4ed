"""What is timed, on an engine whose times are made."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfpipe.backends.base import Backend
from hfpipe.bench import measure
from hfpipe.bench.measure import (
    Prompt,
    Timed,
    decode_tps,
    latency,
    prefill_tps,
    random_prompts,
    run,
    throughput_tps,
    warm_up,
)
from hfpipe.errors import BackendError
from hfpipe.types import BackendInfo, TokenEvent


class Clockwork(Backend):
    """Reads a token of a prompt in 1 ms and gives a token in 10 ms, those of all requests at once."""

    name = "clockwork"
    info = BackendInfo("clockwork", "none", "none")

    def __init__(self, monkeypatch, answers=True):
        self.now = 100.0
        self.requests = []
        self.answers = answers
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    @classmethod
    def load(cls, source, options, reporter):
        raise NotImplementedError

    def cancel(self, request_id):
        raise NotImplementedError

    def stream(self, requests):
        requests = list(requests)
        self.requests += requests
        self.now += 0.001 * sum(len(one.token_ids) for one in requests)
        for number in range(max(one.max_tokens for one in requests)):
            self.now += 0.01
            for one in requests:
                if number < one.max_tokens:
                    done = number + 1 == one.max_tokens
                    yield TokenEvent(one.id, (7,) if self.answers else (), "length" if done else None)


@pytest.fixture
def engine(monkeypatch):
    return Clockwork(monkeypatch)


def test_one_answer(engine):
    (answer,) = run(engine, [Prompt((1,) * 90, 5)])
    assert answer.ttft_s == pytest.approx(0.1)
    assert answer.decode_s == pytest.approx(0.04)
    assert answer.itl_ms == pytest.approx([10] * 4)
    assert prefill_tps([answer]) == pytest.approx(900)
    assert decode_tps([answer]) == pytest.approx(100)
    expected = {"ttft_ms": 100, "tpot_ms": 10, "itl_ms_p50": 10, "itl_ms_p95": 10, "itl_ms_p99": 10}
    assert latency([answer]) == pytest.approx(expected)


def test_several_answers_at_once(engine):
    answers = run(engine, [Prompt((1,) * 40, 4), Prompt((1,) * 50, 6)])
    assert [len(one.tokens) for one in answers] == [4, 6]
    assert throughput_tps(answers) == pytest.approx(10 / 0.15)


def test_an_answer_of_one_token_has_no_time_between_tokens(engine):
    (answer,) = run(engine, [Prompt((1,), 1)])
    assert decode_tps([answer]) is None
    assert set(latency([answer])) == {"ttft_ms"}


def test_nothing_ends_an_answer_and_nothing_is_drawn(engine):
    run(engine, [Prompt((1, 2), 3)])
    (request,) = engine.requests
    assert (request.eos_token_ids, request.sampling.temperature, request.max_tokens) == (frozenset(), 0, 3)


def test_an_engine_that_says_nothing(monkeypatch):
    with pytest.raises(BackendError, match="clockwork backend gave no token"):
        run(Clockwork(monkeypatch, answers=False), [Prompt((1,), 2)])


def test_the_warm_up_has_the_shape_of_what_follows(engine):
    shapes = random_prompts("0", 50, 20, 100, count=3)
    warm_up(engine, shapes, 50)
    assert [len(one.token_ids) for one in engine.requests] == [20] * 3
    assert [one.max_tokens for one in engine.requests] == [measure._WARM_UP_TOKENS] * 3
    assert not {one.token_ids for one in engine.requests} & {one.token_ids for one in shapes}


@given(st.text(), st.integers(1, 1000), st.integers(1, 50), st.integers(1, 5))
def test_random_prompts(seed, vocabulary, tokens, count):
    prompts = random_prompts(seed, vocabulary, tokens, 3, count)
    assert prompts == random_prompts(seed, vocabulary, tokens, 3, count)
    assert [len(one.token_ids) for one in prompts] == [tokens] * count
    assert all(0 <= token < vocabulary for one in prompts for token in one.token_ids)


def test_random_prompts_are_others_in_each_round():
    prompts = [one for number in range(5) for one in random_prompts(f"round {number}", 1000, 64, 1, 8)]
    assert len({one.token_ids[:16] for one in prompts}) == 40


def test_latencies_of_several_answers_are_their_medians():
    answers = [Timed(Prompt((1,), 3), 0.0, (first, first + 0.01, first + 0.03)) for first in (0.1, 0.2, 0.9)]
    found = latency(answers)
    assert found["ttft_ms"] == pytest.approx(200)
    assert found["tpot_ms"] == pytest.approx(15)
    assert found["itl_ms_p50"] == pytest.approx(15)
    assert found["itl_ms_p99"] == pytest.approx(20)
