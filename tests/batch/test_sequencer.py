"""Whatever order results come in, they go out in that of the input."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfpipe.batch.sequencer import Sequencer


class Lines:
    """A sink that may refuse."""

    def __init__(self, count=0):
        self.lines, self.first, self.full = [], count, False

    @property
    def count(self):
        return self.first + len(self.lines)

    def append(self, line):
        if self.full:
            raise OSError("full")
        self.lines.append(line)


@given(st.integers(1, 9), st.integers(0, 40), st.integers(0, 5), st.randoms())
def test_in_order_and_within_the_window(window, total, first, random):
    """An engine takes what there is room for, and ends any of it."""
    sink = Lines(first)
    sequencer, admitted, running = Sequencer(sink, window), first, []
    while sink.count < first + total:
        room = min(sequencer.room(admitted), first + total - admitted)
        running += range(admitted, admitted + room)
        admitted += room
        assert len(running) + sequencer.waiting <= window
        ended = running.pop(random.randrange(len(running)))
        sequencer.put(ended, b"%d" % ended)
        assert sequencer.next == sink.count
    assert sink.lines == [b"%d" % i for i in range(first, first + total)]
    assert sequencer.waiting == 0


def test_the_oldest_holds_the_window():
    sink = Lines()
    sequencer = Sequencer(sink, 3)
    assert [sequencer.room(position) for position in range(5)] == [3, 2, 1, 0, 0]
    sequencer.put(1, b"1")
    sequencer.put(2, b"2")
    assert (sequencer.waiting, sequencer.room(3), sink.lines) == (2, 0, [])
    sequencer.put(0, b"0")
    assert (sequencer.waiting, sequencer.room(3), sink.lines) == (0, 3, [b"0", b"1", b"2"])


def test_what_could_not_be_written_waits():
    sink = Lines()
    sequencer = Sequencer(sink, 3)
    sequencer.put(1, b"1")
    sink.full = True
    with pytest.raises(OSError, match="full"):
        sequencer.put(0, b"0")
    sink.full = False
    sequencer.flush()
    assert sink.lines == [b"0", b"1"]


@pytest.mark.parametrize(("position", "reason"), [(0, "already"), (2, "already"), (4, "no room")])
def test_a_result_is_given_once_and_in_the_window(position, reason):
    sequencer = Sequencer(Lines(), 3)
    for known in (0, 2):
        sequencer.put(known, b"")
    with pytest.raises(ValueError, match=reason):
        sequencer.put(position, b"")


def test_a_window_admits_something():
    with pytest.raises(ValueError, match="admits nothing"):
        Sequencer(Lines(), 0)
