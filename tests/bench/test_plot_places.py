"""Where things stand in a picture: no text over another or outside, the Pareto front, scales."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hfpipe.bench.plots import data as plot_data
from hfpipe.bench.plots import tradeoff as module
from hfpipe.bench.plots.data import front, latencies, pareto, percent, points, spread
from hfpipe.bench.plots.labels import LEADER, Box, Bubble, place
from hfpipe.bench.plots.latency import latency
from hfpipe.bench.plots.sheet import shorten, style, text_width, wrap
from hfpipe.bench.plots.speeds import speeds
from hfpipe.bench.plots.tradeoff import tradeoff
from tests.bench import made_plots as made

REPORTS = {
    "measured": made.smollm2(),
    "bad": made.smollm2(0.30),
    "crowd": made.crowd(),
    "many": made.crowd(30),
    "alone": made.alone(),
    "long-names": made.long_names(),
    "chinese": made.chinese(),
    "gaps": made.gaps(),
    "extremes": made.extremes(),
}


def drawn(figure):
    figure.draw_without_rendering()
    return figure


def shown_texts(figure):
    """Boxes of the texts, with those of axes that are not numbers of ticks."""
    labels = [axis.label for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]
    inside = [text for axes in figure.axes for text in axes.texts]
    texts = [text for text in [*figure.texts, *labels, *inside] if text.get_text().strip()]
    return {(place, text.get_text()): text.get_window_extent() for place, text in enumerate(texts)}


def check(figure):
    boxes = shown_texts(drawn(figure))
    for (name, box), (other, its) in itertools.combinations(boxes.items(), 2):
        across = min(box.x1, its.x1) - max(box.x0, its.x0)
        up = min(box.y1, its.y1) - max(box.y0, its.y0)
        # The box of a line of text has room for accents and descenders: 2 pixels of 200 to the inch do not touch.
        assert across <= 0.5 or up <= 2, (name, other, across, up)
    frame = figure.bbox
    for name, box in boxes.items():
        assert box.x0 >= 0, name
        assert box.y0 >= 0, name
        assert box.x1 <= frame.x1, name
        assert box.y1 <= frame.y1, name


@pytest.mark.parametrize("case", REPORTS)
def test_no_text_is_over_another_or_outside(case):
    with style():
        check(tradeoff(REPORTS[case]))
        check(latency(REPORTS[case]))
        check(speeds(REPORTS[case]))


def test_areas_are_in_proportion_to_sizes():
    with style():
        figure = drawn(tradeoff(made.smollm2()))
    areas = [
        one.get_sizes()[0] for one in figure.axes[0].collections if len(one.get_edgecolor()) and one.get_lw()[0] == 1
    ]
    assert np.allclose(np.array(areas) / areas[0], np.array([269, 269, 135, 104]) / 269)


def test_quality_is_better_at_the_top():
    with style():
        low, high = tradeoff(made.smollm2()).axes[0].get_ylim()
        assert low > 5.3 > 0 > high
        assert tradeoff(made.smollm2()).axes[0].get_yscale() == "linear"
        assert tradeoff(made.smollm2(0.30)).axes[0].get_yscale() == "symlog"


def test_very_many_configurations_are_drawn():
    with style():
        figure = tradeoff(made.crowd(50)) or speeds(made.crowd(50))
        assert len([text for text in figure.texts if "variant-" in text.get_text()]) == 50


COORDINATES = st.floats(0, 320, allow_nan=False)
BUBBLES = st.builds(Bubble, COORDINATES, COORDINATES, st.floats(0, 20), st.floats(10, 120), st.floats(8, 30))


@settings(max_examples=30, deadline=None)
@given(st.lists(BUBBLES, min_size=1, max_size=5))
def test_labels_stand_apart_and_within(bubbles):
    frame, kept = Box(0, 0, 420, 320), Box(370, 280, 420, 320)
    boxes = place(bubbles, frame, kept_free=[kept])
    assert boxes is not None
    for bubble, box in zip(bubbles, boxes, strict=True):
        assert (round(box.right - box.left, 6), round(box.top - box.bottom, 6)) == (
            round(bubble.width, 6),
            round(bubble.height, 6),
        )
        assert box.left >= frame.left
        assert box.bottom >= frame.bottom
        assert box.right <= frame.right
        assert box.top <= frame.top
    assert not any(one.meets(other) for one, other in itertools.combinations([*boxes, kept], 2))


def covered(bubbles, boxes):
    """Whether a label stands on a bubble, or on the line from another bubble to its label."""
    pairs = list(zip(bubbles, boxes, strict=True))
    for bubble, box in pairs:
        if bubble.radius and any(bubble.gap(one) == 0 for one in boxes):
            return True
        x, y = box.nearest(bubble.x, bubble.y)
        for part in np.linspace(0.1, 1, 50) if bubble.gap(box) > LEADER else ():
            at_x, at_y = bubble.x + part * (x - bubble.x), bubble.y + part * (y - bubble.y)
            spot = Box(at_x, at_y, at_x, at_y)
            if any(one.meets(spot) for one in boxes if one is not box):
                return True
    return False


@settings(max_examples=30, deadline=None)
@given(st.lists(BUBBLES, min_size=1, max_size=5))
def test_labels_cover_neither_bubbles_nor_leaders_where_there_is_room(bubbles):
    frame = Box(0, 0, 420, 320)
    boxes = place(bubbles, frame, may_cover=False)
    assert boxes is None or not covered(bubbles, boxes)


@pytest.mark.parametrize("case", ["measured", "crowd", "many"])
def test_labels_in_a_crowd_cover_nothing(case, monkeypatch):
    placed = []

    def kept(bubbles, frame, **more):
        placed.append((bubbles, place(bubbles, frame, **more)))
        return placed[-1][1]

    monkeypatch.setattr(module, "place", kept)
    with style():
        tradeoff(REPORTS[case])
    assert not covered(*placed[-1])


def test_labels_that_do_not_fit_are_not_placed():
    assert place([Bubble(5, 5, 1, 50, 10)], Box(0, 0, 40, 40)) is None
    assert place([Bubble(5, 5, 1, 30, 30), Bubble(6, 6, 1, 30, 30)], Box(0, 0, 40, 40)) is None


CHOICES = st.lists(st.tuples(st.integers(0, 6).map(float), st.integers(-3, 3).map(float)), max_size=12)


@given(CHOICES)
def test_the_front_is_what_nothing_beats(choices):
    def beaten(one):
        return any(other[0] >= one[0] and other[1] <= one[1] and other != one for other in choices)

    best = pareto(choices)
    assert sorted(best) == [index for index, one in enumerate(choices) if not beaten(one)]
    assert [choices[index] for index in best] == sorted(choices[index] for index in best)


def test_the_front_of_made_points():
    assert pareto([]) == []
    assert pareto([(34, 0), (70, 0), (83, 0.9), (95, 5.3), (60, 3)]) == [1, 2, 3]
    # A loss of 0.02 % is none.
    assert [point.name for point in front(points(made.smollm2()))] == [
        "openvino fp16",
        "openvino int8",
        "openvino int4",
    ]


def test_medians_ranges_and_percentiles():
    row = made.row("a", 50, 100, 0.01)
    values = sorted(row.values("tg128").values())
    found = spread(row, "tg128")
    assert (found.low, found.median, found.high) == (values[0], values[2], values[4])
    assert spread(row, "pp1") is None
    (times,) = latencies(made.report(row), ["itl_ms_p95", "tpot_ms", "itl_ms_p1"])
    rounds = [sample.itl_ms for sample in row.samples if sample.itl_ms]
    assert np.array_equal(times.times, np.concatenate(rounds))
    assert len(times.times) == 5 * 127
    percentiles = [np.percentile(one, 95) for one in rounds]
    assert times.medians == {
        "itl_ms_p95": pytest.approx(np.median(percentiles)),
        "tpot_ms": pytest.approx(np.median([np.mean(one) for one in rounds])),
    }


def test_percent():
    assert [percent(value) for value in (5.3, -0.1, -0.02)] == ["+5.3%", "\N{MINUS SIGN}0.1%", "0.0%"]


@given(st.text(st.characters(codec="utf-8"), max_size=80))
@settings(max_examples=40, deadline=None)
def test_text_fits_its_room(text):
    text = plot_data.clean(text)
    with style():
        assert text_width(shorten(text, 120, 8.5), 8.5) <= 120 or len(text) < 4
        lines = wrap(text, 120, 8.5)
        assert "".join(lines).replace(" ", "") == text.replace(" ", "")
        assert all(text_width(line, 8.5) <= 120 for line in lines)
