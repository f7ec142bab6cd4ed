"""Stop strings: the same as reading character by character, however the text is cut."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hfpipe.text.decoder import StopScanner

letters = st.text("abc", max_size=40)
stop_lists = st.lists(st.text("abc", min_size=1, max_size=6), max_size=5)
cuts = st.lists(st.integers(0, 40), max_size=8)
thorough = settings(max_examples=300, deadline=None)


def cut(text: str, places: list[int]) -> list[str]:
    edges = [0, *sorted(min(place, len(text)) for place in places), len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


def scan(stops, chunks):
    """What was shown, and whether a stop ended it."""
    scanner, shown = StopScanner(stops), ""
    for chunk in chunks:
        text, stopped = scanner.feed(chunk)
        shown += text
        if stopped:
            return shown, True
    text, stopped = scanner.feed("", last=True)
    return shown + text, stopped


def oracle(stops, text):
    """The definition: the smallest end, then the earliest start."""
    for end in range(len(text) + 1):
        lengths = [len(stop) for stop in stops if text[:end].endswith(stop)]
        if lengths:
            return text[: end - max(lengths)], True
    return text, False


@given(stop_lists, letters, cuts)
@thorough
def test_equals_reading_character_by_character(stops, text, places):
    """And holds only what may begin a stop."""
    scanner, fed, shown, stopped = StopScanner(stops), "", "", False
    for chunk in cut(text, places):
        new, stopped = scanner.feed(chunk)
        fed, shown = fed + chunk, shown + new
        if stopped:
            break
        starts = [fed[i:] for i in range(len(fed)) if any(s.startswith(fed[i:]) and s != fed[i:] for s in stops)]
        assert fed == shown + max(starts, key=len, default="")
    if not stopped:
        new, stopped = scanner.feed("", last=True)
        shown += new
    assert (shown, stopped) == oracle(stops, text)


@pytest.mark.parametrize(
    ("stops", "chunks", "shown", "stopped"),
    [
        (["STOP"], ["STOP and more"], "", True),
        (["STOP"], ["all of it"], "all of it", False),
        (["\n\n"], ["one\n", "two\n", "\nthree"], "one\ntwo", True),
        (["abc", "bc"], ["xabc"], "x", True),
        (["Observation:", "Obs"], ["an Observation: x"], "an ", True),
        (["Observation:"], ["an Observ", "atory"], "an Observatory", False),
        (["aab"], list("aaaaab"), "aaa", True),
        (["👍🏽"], ["fine ", "👍", "🏽", "!"], "fine ", True),
        ([], ["any", "thing"], "anything", False),
    ],
)
def test_examples(stops, chunks, shown, stopped):
    assert scan(stops, chunks) == (shown, stopped)


def test_long_and_many_stops_take_little_time():
    stops = ["a" * 5000 + "b", *(f"stop {n}" for n in range(50))]
    scanner = StopScanner(stops)
    assert "".join(scanner.feed("a" * 4)[0] for _ in range(5000)) + scanner.feed("", last=True)[0] == "a" * 20_000
