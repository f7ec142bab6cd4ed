"""What a terminal shows of made reports: in its width, with all of the numbers."""

import re
import shlex
import subprocess

import pytest
from rich.cells import cell_len

from hfpipe.bench.baseline import compare
from hfpipe.bench.render import baseline, benchmark, meanings
from hfpipe.bench.summary import Advice, advice, summarize
from hfpipe.bench.tables import tables
from tests.bench import made

WIDTHS = (60, 80, 120)


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
        made.configuration("c", error="The run was interrupted."),
    ]
    return made.report(*rows, batches=(1, 8), interrupted=True)


def extreme():
    rows = [
        made.configuration("tiny", 0.0123, -0.5, 0.4),
        made.configuration("huge", 1_234_567.0, 123.4, 1_234_567.0),
        made.configuration("wild", 1_000.0, 0.0, 10.0, rounds=2, wobble=300),
    ]
    return made.report(*rows)


def failed():
    reason = "optimum-cli ended with 1: channel size is not divisible by the group size 128.\nTraceback: …"
    return made.report(*(made.configuration(name, error=f"{name}: {reason}") for name in "abc"))


REPORTS = {
    "usual": made.usual,
    "four batches": lambda: made.usual((1, 2, 8, 32, 128)),
    "twelve": twelve,
    "unicode": unicode_names,
    "interrupted": interrupted,
    "extreme": extreme,
    "failed": failed,
    "alone": lambda: made.report(made.configuration("alone", 60)),
    "empty": made.report,
}


def text_of(report, width=80, max_loss=0.02, **more):
    return benchmark(summarize(report), advice(report, max_loss), width=width, **more)


def squeezed(text):
    return re.sub(r"\s", "", text)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", REPORTS)
def test_no_line_is_wider_than_the_terminal(name, width):
    for line in text_of(REPORTS[name](), width).splitlines():
        assert cell_len(line) <= width, line
        assert line == line.rstrip()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", REPORTS)
def test_all_that_the_tables_have_is_shown(name, width):
    """Cells of one line, or of a name or verdict that was broken, in pieces that are whole."""
    summary = summarize(REPORTS[name]())
    text = benchmark(summary, width=width)
    assert "…" not in text.replace("Traceback: …", "")
    for table in tables(summary):
        for cell in [cell for column in table.columns for cell in column.cells]:
            for part in re.split(r" (?=\()", cell):
                assert part in text or all(word in text for word in part.split())
        for note in table.notes:
            assert squeezed(note) in squeezed(text)
    for warning in summary.warnings:
        assert squeezed(warning) in squeezed(text)


@pytest.mark.parametrize("width", [60, 80])
def test_each_row_of_a_table_has_its_numbers(width):
    report = twelve()
    for index, one in enumerate(report.configurations):
        one.name = f"int{index}"
    summary = summarize(report)
    lines = benchmark(summary, width=width).splitlines()
    for row in summary.rows:
        own = " ".join(line for line in lines if line.startswith(f"{row.name} "))
        for metric in ("tg128", "pp512", "batch2_tps", "batch128_tps"):
            assert f"{row.values[metric].median:,.0f}" in own or f"{row.values[metric].median:.1f}" in own


@pytest.mark.parametrize("width", [1, 7, 20, 35])
@pytest.mark.parametrize("name", REPORTS)
def test_a_terminal_that_is_too_narrow_is_no_error(name, width):
    assert text_of(REPORTS[name](), width) is not None


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


def test_a_wide_terminal_has_verdicts_in_one_line():
    text = text_of(made.usual(), 120)
    assert "openvino int8  2.45x faster (2.45 to 2.45)  2.45x faster (2.45 to 2.45)" in text


def test_a_failed_configuration_is_a_row_with_its_reason_below():
    report = made.report(made.configuration("a", 60), made.configuration("b", error="No memory.\nAt all."))
    lines = text_of(report).splitlines()
    assert "b" in lines
    assert "b failed: No memory. At all." in lines
    assert lines.index("b") < lines.index("b failed: No memory. At all.") < lines.index("Latency and memory")


def test_nothing_but_failures():
    lines = text_of(failed()).splitlines()
    assert {"a", "b", "c"} <= set(lines)
    assert lines[-1] == "Nothing was fully measured, so there is no advice."


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


@pytest.mark.parametrize("width", [20, 40, 60, 80])
def test_a_command_can_be_copied(width):
    """In lines that a shell reads as one; a word that is too long stays whole."""
    words = [
        "hfpipe",
        "export",
        "smollm2",
        "--weight-format",
        "int4",
        "/a/" + "long/" * 20,
        "with space",
        "--ratio",
        "0.8",
    ]
    text = benchmark(summarize(made.report()), Advice("a", "Take it.", [shlex.join(words)]), width=width)
    lines = text.splitlines()[1:]
    command = "\n".join(lines).replace("hfpipe", "printf '%s\\n'", 1)
    assert subprocess.check_output(["sh", "-c", command], text=True).splitlines() == words[1:]
    assert all(cell_len(line) <= width or len(line.split()) <= 2 for line in lines)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_baseline(width):
    several = {"batches": [8, 32]}
    names = ["openvino int8 group 128", "모델 int4", "torch"]
    old = made.report(*(made.configuration(name, 60, **several) for name in names), batches=(1, 8, 32))
    now = made.report(*(made.configuration(name, 50, **several) for name in names[1:]), batches=(1, 8, 32))
    text = baseline(compare(now, old, 0.1), width=width)
    assert all(cell_len(line) <= width for line in text.splitlines())
    assert "1.20x slower" in text
    assert "Failed or missing now: openvino int8 group 128." in text
    assert "Slower than allowed: 모델 int4 (" in text
    assert baseline(compare(old, old), width=width) == "36 of 36 differences from the baseline are not resolved."


@pytest.mark.parametrize("width", WIDTHS)
def test_meanings(width):
    text = meanings(summarize(made.usual()), width=width)
    assert all(cell_len(line) <= width for line in text.splitlines())
    assert "- tg128: 128 tokens after a prompt of one" in text
