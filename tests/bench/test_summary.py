"""Medians, verdicts and warnings of made reports."""

import json

import pytest

from hfpipe.bench.advice import advice
from hfpipe.bench.report import read_report
from hfpipe.bench.summary import summarize
from tests.bench import made


def warnings(*configurations, **more):
    return list(summarize(made.report(*configurations, **more)).warnings)


def test_rows_have_medians_and_verdicts_against_the_first():
    summary = summarize(made.usual())
    assert [row.name for row in summary.rows] == ["torch", "openvino fp16", "openvino int8", "openvino int4"]
    assert [metric.name for metric in summary.headline] == ["pp512", "tg128", "batch8_tps"]
    first, _, int8, _ = summary.rows
    assert first.verdicts == {}
    assert int8.values["tg128"].median == pytest.approx(147)
    assert int8.values["tg128"].low == pytest.approx(147 * 0.99)
    assert int8.values["tg128"].high == pytest.approx(147 * 1.01)
    assert int8.values["tg128"].rounds == 5
    assert int8.verdicts["tg128"].text == "2.45x faster (2.45 to 2.45)"
    assert int8.verdicts["ttft_ms"].text == "2.45x faster (2.45 to 2.45)"
    assert int8.verdicts["peak_rss_mb"].text == "no difference resolved (1.00 to 1.00)"
    assert (int8.size_mb, int8.quality.perplexity_change, int8.error) == (135, 0.009, None)
    assert "peak_gpu_mb" not in int8.values
    assert summary.warnings == []


def test_the_headline_has_the_largest_batch():
    assert [one.name for one in summarize(made.report(batches=(1, 32, 8))).headline] == [
        "pp512",
        "tg128",
        "batch32_tps",
    ]
    assert [one.name for one in summarize(made.report(batches=(1,))).headline] == ["pp512", "tg128"]


def test_prompts_of_the_user_have_metrics_of_their_own():
    report = made.usual()
    report.arguments["prompt_tokens"] = None
    assert [one.name for one in summarize(report).headline] == ["prefill_tps", "decode_tps", "batch8_tps"]
    assert advice(report, 0.02).name is None


def test_a_summary_after_json_is_the_same(tmp_path):
    path = tmp_path / "report.json"
    path.write_text(json.dumps(made.usual().as_dict()))
    assert summarize(read_report(path)) == summarize(made.usual())
    assert advice(read_report(path), 0.02) == advice(made.usual(), 0.02)


def test_nothing_is_measured():
    assert summarize(made.report()).rows == []
    assert advice(made.report(), 0.02).name is None
    failed = made.report(made.configuration("a", error="no"), made.configuration("b", error="no"))
    assert [row.error for row in summarize(failed).rows] == ["no", "no"]
    assert summarize(failed).warnings == []
    assert advice(failed, 0.02).text == "Nothing was measured to the end, so there is no advice."


def test_a_quiet_machine_has_no_warnings():
    assert warnings(made.configuration("a", 60), made.configuration("b", 90)) == []


def test_a_busy_machine():
    quiet, busy = made.configuration("a", 60), made.configuration("b", 60, others=0.121, rounds=5)
    assert warnings(quiet, busy) == [
        "The machine was busy: other processes used 7% of its processors (median; up to 12%)."
    ]
    assert warnings(quiet, made.configuration("b", 60, others=None)) == []
    assert warnings(quiet, made.configuration("c", 60, rounds=8), busy) == [
        "The machine was busy while b ran: other processes used 12% of its processors (median; up to 12%)."
    ]


def test_a_frequency_that_changes():
    rows = [made.configuration("a", 60, frequency=3_000.0), made.configuration("b", 60, frequency=2_600.0)]
    assert warnings(*rows) == ["The processors' frequency changed: 2,600 to 3,000 MHz."]
    assert warnings(made.configuration("a", 60, frequency=None), rows[0]) == []
    assert warnings(made.configuration("a", 60, frequency=2_800.0), rows[0]) == []


def test_few_rounds():
    a, b, failed = (
        made.configuration("a", 60, rounds=2),
        made.configuration("b", 60),
        made.configuration("c", error="x"),
    )
    assert warnings(a, b, failed) == ["Fewer than 3 rounds for a: no difference can be resolved."]
    c = made.configuration("c", 60, rounds=1)
    assert warnings(a, c) == ["Fewer than 3 rounds for every configuration: no difference can be resolved."]


def test_samples_that_spread():
    row = made.configuration("a", 60, wobble=40)
    assert warnings(row) == ["The samples of a spread: pp512 by 16%, tg128 by 16% from the slowest to the fastest."]


def test_an_interrupted_report_keeps_its_own_warnings():
    found = warnings(made.configuration("a", 60), warnings=["No GPU."], interrupted=True)
    assert found == ["No GPU.", "The run was interrupted: this is what had been measured."]


def test_a_reference_that_failed():
    report = made.report(made.configuration("a", error="no"), made.configuration("b", 60), made.configuration("c", 70))
    summary = summarize(report)
    assert [row.verdicts for row in summary.rows] == [{}, {}, {}]
    assert summary.warnings == ["a has no samples, so nothing is compared with it."]
