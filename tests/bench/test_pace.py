"""How long the rest of a run takes."""

import pytest

from hfpipe.bench import pace as module
from hfpipe.bench.pace import Pace


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

    monkeypatch.setattr(module.time, "perf_counter", lambda: Clock.now)
    return Clock


def after(clock, pace, *seconds):
    for one in seconds:
        clock.now += one
        pace.step()
    return pace.done, pace.total


def test_what_is_to_come_takes_as_long_as_its_like_took(clock):
    pace = Pace([("a", 1), ("b", 1), ("a", 8), ("b", 8), ("a", 1), ("b", 8)])
    # Nothing is known yet: a second each.
    assert (pace.done, pace.total) == (0, 60)
    # All as the first.
    assert after(clock, pace, 2) == (20, 120)
    # The first two as they were, others as the mean of both.
    assert after(clock, pace, 4) == (60, 60 + 20 + 3 * 30)
    # Of size 8, as the one that has ended.
    assert after(clock, pace, 10) == (160, 160 + 100 + 20 + 100)
    assert after(clock, pace, 20) == (360, 360 + 20 + 200)
    assert after(clock, pace, 2, 20) == (580, 580)


def test_there_is_a_rest_until_the_last_has_ended(clock):
    pace = Pace([("a", 1), ("a", 1)])
    assert after(clock, pace, 0) == (0, 1)
    assert after(clock, pace, 0) == (0, 0)
