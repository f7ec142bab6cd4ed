"""Tables, Markdown and CSV of made reports."""

import csv
import io
import re

import pytest

from hfpipe.bench.baseline import compare
from hfpipe.bench.summary import advice, summarize
from hfpipe.bench.tables import changes, compared, csv_text, markdown, meanings, remarks, tables
from tests.bench import made

HEADER = ["name", "model", "backend", "weight_format", "device", "dtype", "size_mb"]


def by_title(report):
    return {table.title: table for table in tables(summarize(report))}


def column(table, head):
    return list(next(one.cells for one in table.columns if one.head == head))


def read(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_the_tables():
    found = by_title(made.usual())
    assert list(found) == ["Speed", "Against torch", "Latency and memory", "Quality"]
    speed, verdicts, latency, quality = found.values()
    assert [one.head for one in speed.columns] == [
        "size MB",
        "cold_ttft_s",
        "pp512 tok/s",
        "tg128 tok/s",
        "batch8_tps",
        "loss",
    ]
    assert column(speed, "tg128 tok/s") == ["60.0", "90.0", "147", "170"]
    assert column(speed, "loss") == ["0.0%", "0.0%", "+0.9%", "+5.2%"]
    assert [one.head for one in verdicts.columns] == ["pp512", "tg128", "batch8_tps"]
    assert column(verdicts, "tg128")[:2] == ["reference", "1.50x faster (1.50 to 1.50)"]
    assert column(latency, "itl_ms_p99") == ["25.0", "16.7", "10.2", "8.82"]
    assert [one.head for one in latency.columns][-1] == "peak_rss_mb"
    assert column(quality, "perplexity") == ["14.20", "14.20", "14.33", "14.94"]
    assert column(quality, "loss") == ["0.0% ±0.2%", "0.0% ±0.2%", "+0.9% ±0.2%", "+5.2% ±0.2%"]
    assert column(quality, "KL nats") == ["0.0123"] * 4
    assert column(quality, "equal answers") == ["5 of 8"] * 4
    assert column(quality, "first divergence") == ["41.5 of 64"] * 4
    assert quality.notes == ["loss: how far the perplexity is above that of the source model, 14.20."]


def test_losses_against_several_source_models():
    rows = [made.configuration("a", 60, 0.0), made.configuration("b", 60)]
    rows[1].quality = made.quality(reference_perplexity=9.1)
    assert by_title(made.report(*rows))["Quality"].notes == [
        "loss: how far the perplexity is above that of each model's own source."
    ]


def test_what_nobody_has_is_left_out():
    found = by_title(made.report(made.configuration("a", 60), made.configuration("b", error="no")))
    assert list(found) == ["Speed", "Latency and memory"]
    assert [one.head for one in found["Speed"].columns] == ["cold_ttft_s", "pp512 tok/s", "tg128 tok/s"]
    assert found["Latency and memory"].names == ["a"]
    assert found["Speed"].names == ["a", "b"]
    assert found["Speed"].notes == ["b failed: no"]


def test_memory_of_a_gpu_is_shown_where_there_is_one():
    rows = [made.configuration("a", 60, peak_gpu_mb=900.0), made.configuration("b", 60)]
    assert column(by_title(made.report(*rows))["Latency and memory"], "peak_gpu_mb") == ["900", ""]


def test_answers_that_were_not_compared():
    row = made.configuration("a", 60)
    row.quality = made.quality(error=None, answers=0, same_answers=0)
    quality = by_title(made.report(row))["Quality"]
    assert [one.head for one in quality.columns] == ["perplexity", "loss", "equal tokens", "KL nats"]
    assert column(quality, "loss") == ["+0.9%"]


def test_tables_of_nothing():
    assert tables(summarize(made.report())) == []
    (speed,) = tables(summarize(made.report(made.configuration("a", error="no"), made.configuration("b", error="no"))))
    assert (speed.names, speed.columns) == (["a", "b"], [])


def test_markdown():
    report = made.usual()
    text = markdown(summarize(report), advice(report, 0.02))
    assert (
        "| configuration | size MB | cold_ttft_s | pp512 tok/s | tg128 tok/s | batch8_tps | loss |\n|---|---:|" in text
    )
    assert "\n| openvino int8 | 135 | 0.299 | 2,499 | 147 | 823 | +0.9% |\n" in text
    assert "\n    hfpipe run '/cache/openvino int8'\n" in text
    assert "\n- `tg128`: 128 tokens" in text
    assert text.endswith("MB\n")


def test_markdown_is_well_formed():
    """As many cells in each line as in the heading, and nothing that ends a table early."""
    rows = [made.configuration(name, 60, 0.01, 100) for name in ("a|b", "`x` *y* <b>", "日本語", "two\nlines", "")]
    rows.append(made.configuration("failed", error="line 1\nline | 2"))
    report = made.report(*rows, warnings=["<script>"])
    text = markdown(summarize(report), advice(report, 0.02))
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(blocks) == 4
    for head, *lines in blocks:
        assert lines
        assert {len(re.findall(r"(?<!\\)\|", line)) for line in (head, *lines)} == {head.count("|")}
    assert "<b>" not in text.replace(r"\<b\>", "")
    assert "<script>" not in text
    assert "failed failed: line 1 line \\| 2" in text
    assert "| two lines |" in text


def test_markdown_of_failures():
    report = made.report(made.configuration("a", error="no"))
    text = markdown(summarize(report), advice(report, 0.02))
    assert "a failed: no" in text
    assert "Nothing was fully measured" in text
    assert "What is timed" not in text
    assert markdown(summarize(made.report())) == "\n"


def test_csv():
    report = made.usual()
    lines = read(csv_text(summarize(report)))
    assert [line["name"] for line in lines] == ["torch", "openvino fp16", "openvino int8", "openvino int4"]
    int8 = lines[2]
    assert float(int8["tg128"]) == pytest.approx(147, rel=1e-5)
    assert float(int8["tg128_low"]) == pytest.approx(147 * 0.99, rel=1e-5)
    assert float(int8["tg128_high"]) == pytest.approx(147 * 1.01, rel=1e-5)
    assert float(int8["ttft_ms_ratio"]) == pytest.approx(2.45)
    assert float(int8["ttft_ms_ratio_low"]) == pytest.approx(2.45)
    assert float(int8["perplexity_change"]) == 0.009
    assert (int8["same_answers"], int8["answers"], int8["size_mb"], int8["device"]) == ("5", "8", "135", "CPU")
    assert lines[0]["tg128_ratio"] == ""
    assert int8["error"] == ""


def test_remarks_are_what_csv_leaves_out():
    report = made.usual()
    report.warnings.append("No GPU.\nAt all.")
    found = remarks(summarize(report), advice(report, 0.06))
    assert found == [
        "No GPU. At all.",
        "openvino int4 is the fastest that loses at most 6%: tg128 170 tokens/s, perplexity +5.2%.",
        "  hfpipe export smollm2 --weight-format int4",
        "  hfpipe run '/cache/openvino int4'",
    ]
    assert remarks(summarize(report)) == ["No GPU. At all."]
    assert remarks(summarize(made.usual())) == []


def test_a_command_among_the_remarks_keeps_its_blanks():
    report = made.report(made.configuration("two  blanks", 60, 0.0))
    assert remarks(summarize(report), advice(report, 0.02))[-1] == "  hfpipe run '/cache/two  blanks'"


def test_the_header_of_csv_is_stable():
    full = csv_text(summarize(made.usual())).splitlines()[0]
    rows = [made.configuration('a "quoted", name', error="one\ntwo")]
    text = csv_text(summarize(made.report(*rows, batches=(1, 8))))
    assert text.splitlines()[0] == full
    assert full.split(",")[: len(HEADER)] == HEADER
    (line,) = read(text)
    assert (line["name"], line["error"], line["tg128"]) == ('a "quoted", name', "one\ntwo", "")
    assert csv_text(summarize(made.report(batches=(1, 8)))) == full + "\n"


def test_meanings_are_those_of_what_was_measured():
    found = meanings(summarize(made.usual()))
    assert "peak_gpu_mb" not in found
    assert found["tg128"].endswith(", in tokens/s")
    assert meanings(summarize(made.report(made.configuration("a", error="no")))) == {}


def test_a_baseline():
    old = made.report(made.configuration("a", 60), made.configuration("b", 60), made.configuration("gone", 60))
    now = made.report(made.configuration("a", 60), made.configuration("b", 50), made.configuration("new", 60))
    now.host["cpu"] = "EPYC"
    comparison = compare(now, old, 0.10)
    table = changes(comparison)
    assert set(table.names) == {"b"}
    assert "tg128" in column(table, "metric")
    assert column(table, "against the baseline")[0].startswith("1.20x slower")
    lines = compared(comparison)
    assert lines[:3] == [
        "12 of 20 differences from the baseline are not resolved.",
        "Not in the baseline: new.",
        "Failed or missing now: gone.",
    ]
    assert lines[3:] == [
        "The machine differs from the baseline's: cpu.",
        "Slower than allowed: b (ttft_ms, tpot_ms, pp512, tg128).",
    ]
    assert "Only in the baseline: c." in compared(
        compare(old, made.report(*old.configurations, made.configuration("c")))
    )
    same = compare(old, old)
    assert changes(same) is None
    assert compared(same) == ["30 of 30 differences from the baseline are not resolved."]
    assert compared(compare(made.report(), old))[0] == "The baseline has nothing in common with this run."


def test_a_baseline_without_speeds():
    old, now = made.report(made.configuration("a", 60)), made.report(made.configuration("a", 60))
    old.configurations[0].samples = [one for one in old.configurations[0].samples if one.task == "start"]
    said = "No speed was measured in both often enough to be judged."
    assert said in compared(compare(now, old, 0.10))
    assert said not in compared(compare(now, old))
