"""Medians, verdicts, warnings and the advice of made reports; numbers as they are shown."""

import json
import shlex
from dataclasses import asdict

import numpy as np
import pytest

from hfpipe.bench import advice as module
from hfpipe.bench.advice import advice, number
from hfpipe.bench.report import Sample, read_report
from hfpipe.quality.compare import change_text
from tests.bench import made


def row(name="a", speed=60, *about, **more):
    return made.configuration(name, speed, *about, **more)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([row(), row("b", 90)], []),
        (
            [row(), row("b", others=0.121)],
            ["The machine was busy while b ran: other processes used up to 12% of its processors."],
        ),
        ([row(), row("b", others=None, frequency=None)], []),
        (
            [row(frequency=3_000.0), row("b", frequency=2_600.0)],
            ["The processors' frequency changed: 2,600 to 3,000 MHz."],
        ),
        ([row(frequency=2_800.0), row("b", frequency=2_600.0)], []),
        (
            [row(rounds=2), row("b"), row("c", None, error="x")],
            ["Fewer than 3 rounds for a: no difference can be resolved."],
        ),
        (
            [row(rounds=2), row("b", rounds=1)],
            ["Fewer than 3 rounds for every configuration: no difference can be resolved."],
        ),
        (
            [row(wobble=40)],
            ["The samples of a spread: pp512 by 16%, tg128 by 16% from the slowest to the fastest."],
        ),
        ([row("a", None, error="no"), row("b"), row("c")], ["a has no samples, so nothing is compared with it."]),
    ],
)
def test_warnings(rows, said):
    assert module.warnings(made.report(*rows)) == said
    report = made.report(*rows, warnings=["No GPU."], interrupted=True)
    interrupted = "The run was interrupted: the report has what was measured until then."
    assert module.warnings(report) == ["No GPU.", interrupted, *said]


@pytest.mark.parametrize(("memory", "saved"), [(300.0, "memory"), (600.0, "disk space")])
def test_a_format_that_is_slower_than_the_models_own_is_named(memory, saved):
    rows = [row("openvino int8", 120), row("openvino nf4", 54, peak_rss_mb=memory), row("openvino fp16", 90)]
    for one in rows:
        one.model, one.weight_format = "model", one.name.removeprefix("openvino ")
    (said,) = module.warnings(made.report(*rows))
    assert said == f"openvino nf4 decodes 0.6 times as fast as fp16 on this processor: it saves {saved} alone."
    assert module.warnings(made.report(*rows[:2])) == []
    rows[1].samples = made.samples(54, rounds=2)
    assert not [line for line in module.warnings(made.report(*rows)) if "decodes" in line]


def test_advice_after_json_is_the_same(tmp_path):
    path = tmp_path / "report.json"
    path.write_text(json.dumps(asdict(made.usual())))
    assert advice(read_report(path), 0.02) == advice(made.usual(), 0.02)


def test_advice_is_the_fastest_within_the_loss():
    found = advice(made.usual(), 0.02)
    assert found.name == "openvino int8"
    assert found.text == (
        "openvino int8 is the fastest that loses at most 2%: tg128 147 tokens/s, perplexity +0.9%. "
        "Faster, but losing more: openvino int4 (+5.2%)."
    )
    assert found.commands == ["hfpipe run '/cache/openvino int8'"]
    assert [shlex.split(one)[:2] for one in advice(made.usual(), 0.06).commands] == [
        ["hfpipe", "export"],
        ["hfpipe", "run"],
    ]
    assert advice(made.usual(), 0.0).name == "torch"


def test_no_configuration_is_the_fastest_where_that_is_not_resolved():
    """Of those that may be, the advice takes the one that loses least, or the smallest."""
    rows = [
        made.configuration("torch", 60, 0.0, 269),
        made.configuration("int4", 151, 0.015, 90),
        made.configuration("int8", 150, 0.009, 135, wobble=5),
        made.configuration("small", 150, 0.015, 80, wobble=5),
    ]
    found = advice(made.report(*rows), 0.02)
    assert found.name == "int8"
    assert found.text == (
        "Take int8: tg128 150 tokens/s, perplexity +0.9%. No difference is resolved from int4 (151), small (150)."
    )
    rows[2] = made.configuration("int8", 120, 0.009, 135)
    found = advice(made.report(*rows), 0.02)
    assert found.name == "small"
    assert found.text.endswith("No difference is resolved from int4 (151).")


@pytest.mark.parametrize(
    ("rows", "name", "text"),
    [
        (
            [row("a", 60, 0.0, rounds=1), row("b", 90, 0.0, rounds=1)],
            "a",
            "Take a: tg128 60.0 tokens/s, perplexity 0.0%. No difference is resolved from b (90.0).",
        ),
        ([row(), row("b", 90)], "b", "b is the fastest: tg128 90.0 tokens/s. Quality was not measured."),
        (
            [row(), row("b", 90, 0.0, error="Ended by a signal.")],
            "a",
            "a is the only configuration: tg128 60.0 tokens/s. Quality was not measured.",
        ),
        (
            [row("a", 60, 0.03), row("b", 90, 0.05)],
            None,
            "No configuration is known to lose at most 2%. a loses least: +3.0%.",
        ),
        (
            [row("a", 60, 0.0, tg128=None), row("b", error="no")],
            None,
            "No decode speed was measured, so there is no advice.",
        ),
    ],
)
def test_advice(rows, name, text):
    report = made.report(*rows)
    assert (advice(report, 0.02).name, advice(report, 0.02).text) == (name, text)
    report.interrupted = True
    assert advice(report, 0.02).text == "The run was interrupted, so there is no advice."


@pytest.mark.parametrize("seed", range(8))
def test_the_advice_claims_resolved_differences_alone(seed):
    """Of equal configurations none is called faster than another, or the fastest."""
    chance = np.random.default_rng(seed)
    rows = [made.configuration(name, 100, 0.0) for name in "abc"]
    for row in rows:
        row.samples = [Sample("single", n, {"tg128": 100 * (1 + 0.002 * chance.standard_normal())}) for n in range(5)]
    found = advice(made.report(*rows), 0.02)
    assert "fast" not in found.text
    assert found.text.startswith("Take a: ")
    assert "No difference is resolved from " in found.text


def test_one_that_is_faster_by_less_than_is_resolved_is_not_said_to_lose_more():
    rows = [made.configuration("a", 100, 0.0, wobble=50), made.configuration("b", 101, 0.05)]
    assert "Faster" not in advice(made.report(*rows), 0.02).text
    rows[1] = made.configuration("b", 200, 0.05)
    assert "Faster, but losing more: b (+5.0%)." in advice(made.report(*rows), 0.02).text


def test_an_unknown_quality_is_none_that_is_good_enough():
    """Of the first row neither."""
    rows = [
        made.configuration("a", 60),
        made.configuration("b", 50, 0.0),
        made.configuration("c", 90, 0.05),
        made.configuration("d", 40),
    ]
    found = advice(made.report(*rows), 0.02)
    assert found.name == "b"
    assert found.text == (
        "b is the only configuration that loses at most 2%: tg128 50.0 tokens/s, perplexity 0.0%. "
        "Faster, but losing more: c (+5.0%). Faster, quality unknown: a."
    )
    found = advice(made.report(rows[0], rows[2], rows[3]), 0.02)
    assert found.name is None
    assert found.text == ("No configuration is known to lose at most 2%. c loses least: +5.0%.")


def test_losses_against_several_source_models():
    rows = [made.configuration("a", 60, 0.0), made.configuration("b", 90, 0.05), made.configuration("c", 50)]
    sentence = "Losses are against each model's own source."
    rows[1].quality = made.quality(0.05, reference_perplexity=14.2000001)
    assert sentence not in advice(made.report(*rows), 0.02).text
    rows[1].quality = made.quality(0.05, reference_perplexity=9.1)
    assert advice(made.report(*rows), 0.02).text.endswith(f"Faster, but losing more: b (+5.0%). {sentence}")
    assert advice(made.report(*rows), -0.1).text.endswith(f"a loses least: 0.0%. {sentence}")


def test_another_one_is_the_fastest_for_the_largest_batch():
    batches = [8, 32]
    rows = [
        made.configuration("a", 60, 0.0, batches=batches, batch32_tps=900.0),
        made.configuration("b", 90, 0.0, batches=batches, batch32_tps=600.0),
        made.configuration("c", 95, 0.5, batches=batches, batch32_tps=9_000.0),
    ]
    text = advice(made.report(*rows, batches=(1, 8, 32)), 0.02).text
    assert "With 32 answers at once, a is 1.50x faster (1.50 to 1.50): 900 tokens/s." in text
    assert "at once" not in advice(made.report(*rows, batches=(1, 8)), 0.02).text
    rows[1] = made.configuration("b", 90, 0.0)
    assert "at once" not in advice(made.report(*rows, batches=(1, 8, 32)), 0.02).text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.01234, "0.012"),
        (0.99951, "1.00"),
        (1.234, "1.23"),
        (9.996, "10.0"),
        (99.96, "100"),
        (1234.5, "1,234"),
        (0, "0.000"),
    ],
)
def test_numbers(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.009, "+0.9%"),
        (-0.012, "-1.2%"),
        (-0.0001, "0.0%"),
        (0, "0.0%"),
        (1e30, "over +100,000%"),
        (123.4, "+12,340%"),
        (12.34, "+1,234%"),
    ],
)
def test_changes(value, text):
    assert change_text(value) == text
