"""Made reports as tables: in a terminal's width, as Markdown, and as CSV."""

import csv
import io
import re
import shlex

import pytest
from rich.cells import cell_len

from hfpipe.bench.advice import advice, warnings
from hfpipe.bench.comparison import compare
from hfpipe.bench.tables import as_csv, as_markdown, as_text, changes, clean, meanings, meanings_text, tables
from tests.bench import made


def by_title(report):
    return {table.title: table for table in tables(report)}


def test_the_tables():
    found = by_title(made.usual())
    assert list(found) == ["Speed", "Against torch", "Latency and memory", "Quality"]
    speed, verdicts, latency, quality = (table.columns for table in found.values())
    assert list(speed) == ["size MB", "cold_ttft_s", "pp512 tok/s", "tg128 tok/s", "batch8_tps", "loss"]
    assert speed["tg128 tok/s"] == ["60.0", "90.0", "147", "170"]
    assert speed["loss"] == ["0.0%", "0.0%", "+0.9%", "+5.2%"]
    assert list(verdicts) == ["pp512", "tg128", "batch8_tps"]
    assert verdicts["tg128"][:2] == ["reference", "1.50x faster (1.50 to 1.50)"]
    assert latency["itl_ms_p99"] == ["25.0", "16.7", "10.2", "8.82"]
    assert list(latency)[-1] == "peak_rss_mb"
    assert quality == {
        "perplexity": ["14.20", "14.20", "14.33", "14.94"],
        "loss": ["0.0% ±0.2%", "0.0% ±0.2%", "+0.9% ±0.2%", "+5.2% ±0.2%"],
        "equal tokens": ["97.1%"] * 4,
        "KL nats": ["0.0123"] * 4,
        "equal answers": ["5 of 8"] * 4,
        "first divergence": ["41.5 of 64"] * 4,
    }
    assert found["Quality"].notes == ["loss: how far the perplexity is above that of the source model, 14.20."]


def test_the_verdicts_are_of_the_largest_batch():
    several = {"batches": [8, 32]}
    report = made.report(*(made.configuration(name, 60, **several) for name in "ab"), batches=(1, 32, 8))
    assert list(by_title(report)["Against a"].columns) == ["pp512", "tg128", "batch32_tps"]


def test_losses_against_several_source_models():
    rows = [made.configuration("a", 60, 0.0), made.configuration("b", 60)]
    rows[1].quality = made.quality(reference_perplexity=9.1)
    (note,) = by_title(made.report(*rows))["Quality"].notes
    assert note == "loss: how far the perplexity is above that of each model's own source."


def test_what_nobody_has_is_left_out():
    found = by_title(made.report(made.configuration("a", 60), made.configuration("b", error="no")))
    assert list(found) == ["Speed", "Latency and memory"]
    assert list(found["Speed"].columns) == ["cold_ttft_s", "pp512 tok/s", "tg128 tok/s"]
    assert (found["Latency and memory"].names, found["Speed"].names) == (["a"], ["a", "b"])
    assert found["Speed"].notes == ["b failed: no"]
    assert tables(made.report()) == []
    rows = [made.configuration("a", 60, peak_gpu_mb=900.0), made.configuration("b", 60)]
    rows[1].quality = made.quality(error=None, answers=0, same_answers=0)
    found = by_title(made.report(*rows))
    assert found["Latency and memory"].columns["peak_gpu_mb"] == ["900", ""]
    assert list(found["Quality"].columns) == ["perplexity", "loss", "equal tokens", "KL nats"]
    assert found["Quality"].columns["loss"] == ["+0.9%"]


def test_meanings_are_those_of_what_was_measured():
    found = meanings(made.usual())
    assert "peak_gpu_mb" not in found
    assert found["tg128"] == "128 tokens after a prompt of one, its first token excluded, in tokens/s"
    assert "- tg128: 128 tokens after a prompt of one" in meanings_text(made.usual(), width=60)
    assert meanings_text(made.report()) == ""


# For a terminal


def text_of(report, width=80, max_loss=0.02, **more):
    return as_text(report, advice(report, max_loss), tables(report), width=width, **more)


def squeezed(text):
    return re.sub(r"\s+", "", text)


@pytest.mark.parametrize("case", made.CASES)
@pytest.mark.parametrize("width", [1, 20, 60, 120])
def test_all_is_shown_in_the_width_of_the_terminal(case, width):
    """But commands, which are to be copied. Names and errors are no markup, and cannot steer a terminal."""
    report = case()
    advised = advice(report, 0.02)
    lines = text_of(report, width).splitlines()
    commands = [clean(f"  {line}") for line in advised.commands]
    assert set(commands) <= set(lines)
    shown = "\n".join(lines)
    assert clean(shown.replace("\n", " ")) == shown.replace("\n", " ")
    if width > 1:
        assert all(cell_len(line) <= width for line in lines if line not in commands)
        for said in (advised.text, *warnings(report), *(note for table in tables(report) for note in table.notes)):
            assert squeezed(clean(" ".join(said.split()))) in squeezed(shown)
    if width >= 60:
        columns = [cells for table in tables(report) if not table.words for cells in table.columns.values()]
        assert [cell for cells in columns for cell in cells if cell not in shown] == []
    if width == 120:
        assert [row.name for row in report.configurations if clean(row.name)[:30] not in shown] == []


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


def test_a_failed_configuration_is_a_row_with_its_reason_below():
    report = made.report(made.configuration("a", 60), made.configuration("b", error="No memory.\nAt all."))
    lines = text_of(report).splitlines()
    assert lines.index("b") < lines.index("b failed: No memory. At all.") < lines.index("Latency and memory")


def test_colour_is_asked_for(monkeypatch):
    report = made.usual()
    for name, value in {"FORCE_COLOR": "1", "COLUMNS": "40", "TERM": "dumb"}.items():
        monkeypatch.setenv(name, value)
    plain, coloured = text_of(report), text_of(report, colour=True)
    assert "\x1b" not in plain
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured).split() == plain.split()
    assert re.search(r"\x1b\[1mopenvino int8", coloured)
    assert not re.search(r"\x1b\[1mopenvino int4", coloured)


def test_a_baseline():
    names = ["openvino int8 group 128", "모델 int4", "torch"]
    old = made.report(*(made.configuration(name, 60) for name in names))
    now = made.report(*(made.configuration(name, 50) for name in names[1:]))
    found = changes(compare(now, old, 0.1))
    text = as_text(now, advice(now, 0.02), [found], width=60)
    assert all(cell_len(line) <= 60 for line in text.splitlines() if not line.startswith("  hfpipe"))
    for file in (text, as_markdown(now, advice(now, 0.02), [found])):
        assert "1.20x slower" in file
        assert "Failed or missing now: openvino int8 group 128." in file
    equal = changes(compare(old, old))
    assert (equal.names, len(equal.notes)) == ((), 1)
    assert "|" not in as_markdown(old, advice(old, 0.02), [equal])


# For files


def markdown(report):
    return as_markdown(report, advice(report, 0.02), tables(report))


def test_markdown():
    text = markdown(made.usual())
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
    text = markdown(made.report(*rows, warnings=["<script>"]))
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(blocks) == 4
    for head, *lines in blocks:
        assert lines
        assert {len(re.findall(r"(?<!\\)\|", line)) for line in (head, *lines)} == {head.count("|")}
    assert "<b>" not in text.replace(r"\<b\>", "")
    assert "<script>" not in text
    assert "failed failed: line 1 line \\| 2" in text
    assert "| two lines |" in text
    assert "What is timed" not in markdown(made.empty())


def read(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_csv():
    lines = read(as_csv(made.usual()))
    assert [line["name"] for line in lines] == ["torch", "openvino fp16", "openvino int8", "openvino int4"]
    int8 = lines[2]
    expected = {"tg128": 147, "tg128_low": 147 * 0.99, "tg128_high": 147 * 1.01, "perplexity_change": 0.009}
    expected |= {"ttft_ms_ratio": 2.45, "ttft_ms_ratio_low": 2.45}
    assert {name: float(int8[name]) for name in expected} == pytest.approx(expected, rel=1e-5)
    assert (int8["same_answers"], int8["answers"], int8["size_mb"], int8["device"]) == ("5", "8", "135", "CPU")
    assert (lines[0]["tg128_ratio"], int8["error"]) == ("", "")


def test_the_header_of_csv_is_stable():
    full = as_csv(made.usual()).splitlines()[0]
    text = as_csv(made.report(made.configuration('a "quoted", name', error="one\ntwo"), batches=(1, 8)))
    assert text.splitlines()[0] == full
    assert full.startswith("name,model,backend,weight_format,device,dtype,size_mb,")
    (line,) = read(text)
    assert (line["name"], line["error"], line["tg128"]) == ('a "quoted", name', "one\ntwo", "")
    assert as_csv(made.report(batches=(1, 8))) == full + "\n"


def test_a_command_keeps_its_blanks():
    report = made.report(made.configuration("two  blanks", 60, 0.0))
    command = text_of(report).splitlines()[-1]
    assert shlex.split(command) == ["hfpipe", "run", "/cache/two  blanks"]
    assert f"  {command}\n" in markdown(report)
