"""Made reports as tables: in a terminal's width, as Markdown, and as CSV."""

import csv
import io
import re
import shlex

import pytest
from rich.cells import cell_len

from hfpipe.bench.advice import advice, warnings
from hfpipe.bench.comparison import compare
from hfpipe.bench.tables import as_csv, as_markdown, as_text, changes, meanings, meanings_text, remarks, render, tables
from tests.bench import made


def by_title(report):
    return {table.title: table for table in tables(report)}


def column(table, head):
    return list(next(one.cells for one in table.columns if one.head == head))


def heads(table):
    return [one.head for one in table.columns]


def test_the_tables():
    found = by_title(made.usual())
    assert list(found) == ["Speed", "Against torch", "Latency and memory", "Quality"]
    speed, verdicts, latency, quality = found.values()
    assert heads(speed) == ["size MB", "cold_ttft_s", "pp512 tok/s", "tg128 tok/s", "batch8_tps", "loss"]
    assert column(speed, "tg128 tok/s") == ["60.0", "90.0", "147", "170"]
    assert column(speed, "loss") == ["0.0%", "0.0%", "+0.9%", "+5.2%"]
    assert heads(verdicts) == ["pp512", "tg128", "batch8_tps"]
    assert column(verdicts, "tg128")[:2] == ["reference", "1.50x faster (1.50 to 1.50)"]
    assert column(latency, "itl_ms_p99") == ["25.0", "16.7", "10.2", "8.82"]
    assert heads(latency)[-1] == "peak_rss_mb"
    assert column(quality, "perplexity") == ["14.20", "14.20", "14.33", "14.94"]
    assert column(quality, "loss") == ["0.0% ±0.2%", "0.0% ±0.2%", "+0.9% ±0.2%", "+5.2% ±0.2%"]
    assert column(quality, "KL nats") == ["0.0123"] * 4
    assert column(quality, "equal answers") == ["5 of 8"] * 4
    assert column(quality, "first divergence") == ["41.5 of 64"] * 4
    assert list(quality.notes) == ["loss: how far the perplexity is above that of the source model, 14.20."]


def test_the_verdicts_are_of_the_largest_batch():
    several = {"batches": [8, 32]}
    report = made.report(*(made.configuration(name, 60, **several) for name in "ab"), batches=(1, 32, 8))
    assert heads(by_title(report)["Against a"]) == ["pp512", "tg128", "batch32_tps"]


def test_losses_against_several_source_models():
    rows = [made.configuration("a", 60, 0.0), made.configuration("b", 60)]
    rows[1].quality = made.quality(reference_perplexity=9.1)
    (note,) = by_title(made.report(*rows))["Quality"].notes
    assert note == "loss: how far the perplexity is above that of each model's own source."


def test_what_nobody_has_is_left_out():
    found = by_title(made.report(made.configuration("a", 60), made.configuration("b", error="no")))
    assert list(found) == ["Speed", "Latency and memory"]
    assert heads(found["Speed"]) == ["cold_ttft_s", "pp512 tok/s", "tg128 tok/s"]
    assert (found["Latency and memory"].names, found["Speed"].names) == (["a"], ["a", "b"])
    assert found["Speed"].notes == ["b failed: no"]
    assert tables(made.report()) == []
    rows = [made.configuration("a", 60, peak_gpu_mb=900.0), made.configuration("b", 60)]
    rows[1].quality = made.quality(error=None, answers=0, same_answers=0)
    found = by_title(made.report(*rows))
    assert column(found["Latency and memory"], "peak_gpu_mb") == ["900", ""]
    assert heads(found["Quality"]) == ["perplexity", "loss", "equal tokens", "KL nats"]
    assert column(found["Quality"], "loss") == ["+0.9%"]


def test_meanings_are_those_of_what_was_measured():
    found = meanings(made.usual())
    assert "peak_gpu_mb" not in found
    assert found["tg128"] == "128 tokens after a prompt of one, its first token excluded, in tokens/s"
    assert "- tg128: 128 tokens after a prompt of one" in meanings_text(made.usual(), width=60)
    assert meanings_text(made.report()) == ""


# For a terminal


def twelve():
    several = {"batches": [2, 8, 32, 128]}
    rows = [
        made.configuration(f"openvino int{index} group {2**index}", 60 + 7 * index, index / 1000, 90 + index, **several)
        for index in range(12)
    ]
    return made.report(*rows, batches=(1, 2, 8, 32, 128))


def unicode_names():
    names = [
        "通义千问二点五零点五B指令 八位 非对称量化",
        "модель-с-очень-длинным-именем-int8",
        "🙂 emoji",
        "[bold]x[/] :smile:",
    ]
    return made.report(*(made.configuration(name, 60 + index, 0.01, 100) for index, name in enumerate(names)))


def interrupted():
    rows = [
        made.configuration("a", 60, rounds=2, batches=[8], peak_gpu_mb=900.0),
        made.configuration("b", 70, 0.0, rounds=1, others=0.4, frequency=1_200.0),
        made.configuration("c", error="optimum-cli ended with 1: channel size is not divisible by 128.\nTraceback: …"),
    ]
    return made.report(*rows, batches=(1, 8), interrupted=True)


def extreme():
    rows = [
        made.configuration("tiny", 0.0123, -0.5, 0.4),
        made.configuration("huge", 1_234_567.0, 123.4, 1_234_567.0),
        made.configuration("wild", 1_000.0, 0.0, 10.0, rounds=2, wobble=300),
    ]
    return made.report(*rows)


REPORTS = [made.usual, twelve, unicode_names, interrupted, extreme, made.report]


def text_of(report, width=80, max_loss=0.02, **more):
    return as_text(report, advice(report, max_loss), width=width, **more)


def squeezed(text):
    return re.sub(r"\s+", "", text)


@pytest.mark.parametrize("made_report", REPORTS)
@pytest.mark.parametrize("width", [20, 60, 120])
def test_all_is_shown_in_the_width_of_the_terminal(made_report, width):
    """But commands, which are to be copied."""
    report = made_report()
    advised = advice(report, 0.02)
    lines = text_of(report, width).splitlines()
    commands = [f"  {line}" for line in advised.commands]
    assert all(cell_len(line) <= width for line in lines if line not in commands)
    assert set(commands) <= set(lines)
    shown = squeezed("\n".join(lines))
    for said in (advised.text, *warnings(report), *(note for table in tables(report) for note in table.notes)):
        assert squeezed(said) in shown
    if width >= 60:
        numbers = {cell for table in tables(report) for one in table.columns for cell in one.cells if not one.words}
        assert not [cell for cell in numbers if cell not in "\n".join(lines)]


def test_at_80_columns():
    lines = text_of(made.usual((1, 8, 32))).splitlines()
    assert lines[:5] == [
        "Speed",
        "               size  cold_ttft  pp512  tg128  batch8  batch32",
        "configuration    MB          s  tok/s  tok/s     tps      tps   loss",
        "────────────────────────────────────────────────────────────────────",
        "torch           269      0.733  1,020   60.0     336    1,344   0.0%",
    ]
    assert "openvino int8  2.45x faster    2.45x faster    2.45x faster" in lines
    assert "               (2.45 to 2.45)  (2.45 to 2.45)  (2.45 to 2.45)" in lines
    assert lines[-3:] == [
        "openvino int8 is the fastest that loses at most 2%: tg128 147 tokens/s,",
        "perplexity +0.9%. Faster, but losing more: openvino int4 (+5.2%).",
        "  hfpipe run '/cache/openvino int8'",
    ]


@pytest.mark.parametrize("width", [1, 7])
def test_a_terminal_that_is_too_narrow_is_no_error(width):
    assert text_of(made.usual(), width)


def test_a_failed_configuration_is_a_row_with_its_reason_below():
    report = made.report(made.configuration("a", 60), made.configuration("b", error="No memory.\nAt all."))
    lines = text_of(report).splitlines()
    assert lines.index("b") < lines.index("b failed: No memory. At all.") < lines.index("Latency and memory")
    lines = text_of(made.report(*(made.configuration(name, error="no") for name in "abc"))).splitlines()
    assert {"a", "b", "c"} <= set(lines)
    assert lines[-1] == "No decode speed was measured, so there is no advice."


def test_names_and_errors_pass_through_no_markup_and_cannot_steer_a_terminal():
    rows = [
        made.configuration("[red]a[/red] :smile:", 60, 0.0),
        made.configuration("b\x1b[31m", 90, 0.5),
        made.configuration("c", error="[link=x]y[/link] \x1b]0;title\x07"),
    ]
    report = made.report(*rows, warnings=["[bold]w[/bold] \x07"])
    for colour in (False, True):
        text = text_of(report, 120, colour=colour)
        assert "[red]a[/red] :smile:" in text
        assert "b�[31m" in text
        assert "[link=x]y[/link] �]0;title�" in text
        assert "[bold]w[/bold] �" in text
        assert "\x07" not in text
        assert "\x1b[31m" not in text


def test_colour_is_asked_for(monkeypatch):
    report = made.usual()
    for name, value in {"FORCE_COLOR": "1", "COLUMNS": "40", "TERM": "dumb"}.items():
        monkeypatch.setenv(name, value)
    plain, coloured = text_of(report), text_of(report, colour=True)
    assert "\x1b" not in plain
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured).split() == plain.split()
    assert re.search(r"\x1b\[1mopenvino int8", coloured)
    assert not re.search(r"\x1b\[1mopenvino int4", coloured)


@pytest.mark.parametrize("width", [60, 80])
def test_a_baseline(width):
    names = ["openvino int8 group 128", "모델 int4", "torch"]
    old = made.report(*(made.configuration(name, 60) for name in names))
    now = made.report(*(made.configuration(name, 50) for name in names[1:]))
    comparison = compare(now, old, 0.1)
    text = render(changes(comparison), comparison.lines, width=width)
    assert all(cell_len(line) <= width for line in text.splitlines())
    assert "1.20x slower" in text
    assert "Failed or missing now: openvino int8 group 128." in text
    assert changes(compare(old, old)) == []


# For files


def test_markdown():
    report = made.usual()
    text = as_markdown(report, advice(report, 0.02))
    head = "| configuration | size MB | cold_ttft_s | pp512 tok/s | tg128 tok/s | batch8_tps | loss |\n|---|---:|"
    assert head in text
    assert "\n| openvino int8 | 135 | 0.299 | 2,499 | 147 | 823 | +0.9% |\n" in text
    assert "\n    hfpipe run '/cache/openvino int8'\n" in text
    assert "\n- `tg128`: 128 tokens" in text
    assert text.endswith("MB\n")


def test_markdown_is_well_formed():
    """As many cells in each line as in the heading, and nothing that ends a table early."""
    rows = [made.configuration(name, 60, 0.01, 100) for name in ("a|b", "`x` *y* <b>", "日本語", "two\nlines", "")]
    rows.append(made.configuration("failed", error="line 1\nline | 2"))
    report = made.report(*rows, warnings=["<script>"])
    text = as_markdown(report, advice(report, 0.02))
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(blocks) == 4
    for head, *lines in blocks:
        assert lines
        assert {len(re.findall(r"(?<!\\)\|", line)) for line in (head, *lines)} == {head.count("|")}
    assert "<b>" not in text.replace(r"\<b\>", "")
    assert "<script>" not in text
    assert "failed failed: line 1 line \\| 2" in text
    assert "| two lines |" in text
    failed = made.report(made.configuration("a", error="no"))
    assert "What is timed" not in as_markdown(failed, advice(failed, 0.02))


def read(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_csv():
    lines = read(as_csv(made.usual()))
    assert [line["name"] for line in lines] == ["torch", "openvino fp16", "openvino int8", "openvino int4"]
    int8 = lines[2]
    assert float(int8["tg128"]) == pytest.approx(147, rel=1e-5)
    assert float(int8["tg128_low"]) == pytest.approx(147 * 0.99, rel=1e-5)
    assert float(int8["tg128_high"]) == pytest.approx(147 * 1.01, rel=1e-5)
    assert float(int8["ttft_ms_ratio"]) == float(int8["ttft_ms_ratio_low"]) == pytest.approx(2.45)
    assert float(int8["perplexity_change"]) == 0.009
    assert (int8["same_answers"], int8["answers"], int8["size_mb"], int8["device"]) == ("5", "8", "135", "CPU")
    assert lines[0]["tg128_ratio"] == ""
    assert int8["error"] == ""


def test_the_header_of_csv_is_stable():
    full = as_csv(made.usual()).splitlines()[0]
    text = as_csv(made.report(made.configuration('a "quoted", name', error="one\ntwo"), batches=(1, 8)))
    assert text.splitlines()[0] == full
    assert full.startswith("name,model,backend,weight_format,device,dtype,size_mb,")
    (line,) = read(text)
    assert (line["name"], line["error"], line["tg128"]) == ('a "quoted", name', "one\ntwo", "")
    assert as_csv(made.report(batches=(1, 8))) == full + "\n"


def test_remarks_are_what_csv_leaves_out():
    report = made.usual()
    report.warnings.append("No GPU.\nAt all.")
    assert remarks(report, advice(report, 0.06)) == [
        "No GPU. At all.",
        "openvino int4 is the fastest that loses at most 6%: tg128 170 tokens/s, perplexity +5.2%.",
        "  hfpipe export smollm2 --weight-format int4",
        "  hfpipe run '/cache/openvino int4'",
    ]


def test_a_command_keeps_its_blanks():
    report = made.report(made.configuration("two  blanks", 60, 0.0))
    advised, command = advice(report, 0.02), "  hfpipe run '/cache/two  blanks'"
    assert remarks(report, advised)[-1] == text_of(report).splitlines()[-1] == command
    assert f"  {command}\n" in as_markdown(report, advised)
    assert shlex.split(command)[-1] == "/cache/two  blanks"
