"""The advice of made reports."""

import shlex

from hfpipe.bench.advice import advice
from tests.bench import made


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


def test_advice_is_honest_about_what_is_as_fast():
    rows = [
        made.configuration("torch", 60, 0.0, 269),
        made.configuration("int4", 151, 0.015, 90),
        made.configuration("int8", 150, 0.009, 135, wobble=5),
        made.configuration("small", 150, 0.015, 80, wobble=5),
    ]
    text = advice(made.report(*rows), 0.02).text
    assert "int4 is the fastest that loses at most 2%" in text
    assert "No difference resolved to int8 (loses less), small (smaller)." in text
    assert "torch" not in text


def test_advice_names_some_of_many_that_are_as_fast():
    rows = [made.configuration(f"c{index}", 100 + index / 100, 0.0, 100, wobble=3) for index in range(12)]
    assert advice(made.report(*rows), 0.02).text.endswith("No difference resolved to c10, c9, c8, 8 more.")


def test_one_round_resolves_nothing():
    rows = [made.configuration("a", 60, 0.0, rounds=1), made.configuration("b", 90, 0.0, rounds=1)]
    assert advice(made.report(*rows), 0.02).text.endswith("No difference resolved to a.")


def test_advice_without_quality():
    found = advice(made.report(made.configuration("a", 60), made.configuration("b", 90)), 0.02)
    assert found.name == "b"
    assert found.text == "b is the fastest: tg128 90.0 tokens/s. Quality was not measured."


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
        "b is the fastest that loses at most 2%: tg128 50.0 tokens/s, perplexity 0.0%. "
        "Faster, but losing more: c (+5.0%). Faster, quality unknown: a."
    )
    found = advice(made.report(rows[0], rows[2], rows[3]), 0.02)
    assert found.name is None
    assert found.text == ("No configuration is known to lose at most 2%. c loses least: +5.0%. Quality unknown: a, d.")


def test_a_quality_of_what_failed_is_none():
    rows = [made.configuration("a", 60), made.configuration("b", 90, 0.0, error="Ended by a signal.")]
    found = advice(made.report(*rows), 0.02)
    assert found.text == "a is the fastest: tg128 60.0 tokens/s. Quality was not measured."


def test_losses_against_several_source_models():
    rows = [made.configuration("a", 60, 0.0), made.configuration("b", 90, 0.05), made.configuration("c", 50)]
    sentence = "Losses are against each model's own source."
    rows[1].quality = made.quality(0.05, reference_perplexity=14.2000001)
    assert sentence not in advice(made.report(*rows), 0.02).text
    rows[1].quality = made.quality(0.05, reference_perplexity=9.1)
    assert advice(made.report(*rows), 0.02).text.endswith(f"Faster, but losing more: b (+5.0%). {sentence}")
    assert advice(made.report(*rows), -0.1).text.endswith(f"a loses least: 0.0%. Quality unknown: c. {sentence}")


def test_no_advice_without_a_decode_speed():
    rows = [made.configuration("a", 60, 0.0, tg128=None), made.configuration("b", 60, error="no")]
    found = advice(made.report(*rows), 0.02)
    assert (found.name, found.text) == (None, "No decode speed was measured, so there is no advice.")
    rows.append(made.configuration("c", 60))
    assert advice(made.report(*rows), 0.02).name == "c"


def test_nothing_is_within_the_loss():
    rows = [made.configuration("a", 60, 0.03), made.configuration("b", 90, 0.05)]
    found = advice(made.report(*rows), 0.005)
    assert found.name is None
    assert found.text == "No configuration loses at most 0.5%. a loses least: +3.0%."


def test_what_failed_is_not_advised():
    rows = [made.configuration("a", 60, 0.0), made.configuration("b", 90, 0.0, error="Ended by a signal.")]
    assert advice(made.report(*rows), 0.02).name == "a"


def test_another_one_is_the_fastest_for_the_largest_batch():
    batches = [8, 32]
    rows = [
        made.configuration("a", 60, 0.0, batches=batches, batch32_tps=900.0),
        made.configuration("b", 90, 0.0, batches=batches, batch32_tps=600.0),
        made.configuration("c", 95, 0.5, batches=batches, batch32_tps=9_000.0),
    ]
    text = advice(made.report(*rows, batches=(1, 8, 32)), 0.02).text
    assert "For batches of 32 the fastest is a: 900 tokens/s, 1.50x faster (1.50 to 1.50)." in text
    assert "For batches" not in advice(made.report(*rows, batches=(1, 8)), 0.02).text
    rows[1] = made.configuration("b", 90, 0.0)
    assert "For batches" not in advice(made.report(*rows, batches=(1, 8, 32)), 0.02).text


def test_an_interrupted_run_advises_nothing():
    report = made.usual()
    report.interrupted = True
    assert advice(report, 0.02).name is None
    assert advice(report, 0.02).text == "The run was interrupted, so there is no advice."
