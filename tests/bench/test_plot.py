"""Pictures of made reports: the files, and what stands in them."""

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from hfpipe.bench import plots as module
from hfpipe.bench.advice import advice
from hfpipe.bench.plots import check_plot_path, plot
from hfpipe.bench.summary import summarize
from hfpipe.bench.text import meanings, tables
from hfpipe.errors import HFPipeError, UsageError
from tests.bench import made_plots as made

CASES = {
    "measured": made.smollm2(),
    "bad": made.smollm2(0.30),
    "without-quality": made.smollm2(without_quality=True),
    "crowd": made.crowd(),
    "alone": made.alone(),
    "long-names": made.long_names(),
    "chinese": made.chinese(),
    "gaps": made.gaps(),
    "nothing": made.report(made.row("openvino int8", error="It failed.")),
    "no-rows": made.report(),
    "extremes": made.extremes(),
    "twins": made.report(made.row("a", 50, 100, 0.0), made.row("b", 50, 100, 0.0), made.row("c", 50, 100, 0.0)),
}


@pytest.fixture(scope="module")
def kept():
    return {}


@pytest.fixture(autouse=True)
def drawn_once(kept, monkeypatch):
    """A report is drawn once in each kind, into however many files it goes."""
    from hfpipe.bench.plots import draw as drawing

    draw = drawing.draw

    def once(report, kind):
        # With the report, so that its id is no other's.
        report, pictures = kept.get((id(report), kind)) or (report, draw(report, kind))
        kept[id(report), kind] = report, pictures
        return pictures

    monkeypatch.setattr(drawing, "draw", once)


def svg_texts(path):
    root = ElementTree.parse(path).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    return ["".join(one.itertext()) for one in root.iter("{http://www.w3.org/2000/svg}text")]


class Page(HTMLParser):
    """Tags, attributes and text of a page; the cells of each row of its tables; what is code."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text, self.rows, self.code = [], [], "", [], []
        self.within = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag in ("th", "td", "code"):
            self.within.append(tag)
        if tag in ("th", "td"):
            self.rows[-1].append("")
        elif tag == "tr":
            self.rows.append([])
        elif tag == "code":
            self.code.append("")

    def handle_endtag(self, tag):
        if tag in self.within:
            self.within.remove(tag)

    def handle_data(self, data):
        self.text += data
        if "code" in self.within:
            self.code[-1] += data
        if {"th", "td"} & {*self.within}:
            self.rows[-1][-1] += data


@pytest.mark.parametrize("case", CASES)
def test_every_report_has_pictures(case, tmp_path):
    report = CASES[case]
    timed = any(sample.itl_ms for row in report.configurations for sample in row.samples)
    for kind in ("png", "svg"):
        names = [f"a.{kind}", f"a-latency.{kind}"] if timed else [f"a.{kind}"]
        assert plot(report, tmp_path / f"a.{kind}") == [tmp_path / name for name in names]
    assert plot(report, tmp_path / "a.html") == [tmp_path / "a.html"]
    for file in tmp_path.glob("*.png"):
        assert file.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    for file in tmp_path.glob("*.svg"):
        assert svg_texts(file)
    page = Page((tmp_path / "a.html").read_text(encoding="utf-8"))
    assert page.tags.count("svg") == 1 + timed
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("case", ["measured", "bad", "without-quality", "crowd", "alone", "gaps", "extremes"])
def test_every_configuration_is_named(case, tmp_path):
    report = CASES[case]
    plot(report, tmp_path / "a.svg")
    plot(report, tmp_path / "a.html")
    for file in ("a.svg", "a-latency.svg"):
        text = "\n".join(svg_texts(tmp_path / file))
        assert [row.name for row in report.configurations if row.name not in text] == []
    page = Page((tmp_path / "a.html").read_text(encoding="utf-8"))
    assert [row.name for row in report.configurations if row.name not in page.text] == []


def test_what_a_picture_says(tmp_path):
    plot(CASES["measured"], tmp_path / "a.svg")
    texts = svg_texts(tmp_path / "a.svg")
    for text in (
        "SmolLM2-135M-Instruct: decode speed against loss of quality",
        "Intel Xeon Platinum 8481C · 2 cores · 5 rounds · 2026-11-22",
        "Decode speed (tg128), tokens/s",
        "Pareto front",
        "better",
    ):
        assert text in texts
    assert any(text.startswith("Perplexity above the reference's, %") for text in texts)
    assert any(text.endswith("tok/s · 104 MB · +5.3%") for text in texts)
    latency = svg_texts(tmp_path / "a-latency.svg")
    assert {"p50", "p95", "p99", "tpot"} <= set(latency)
    assert any(text.startswith("Time between tokens, ms") for text in latency)


def ten_times_as_slow(sample):
    values = {name: 10 * value for name, value in sample.values.items() if name.startswith(("itl", "tpot"))}
    return replace(sample, values={**sample.values, **values}, itl_ms=[10 * time for time in sample.itl_ms])


def test_a_picture_has_the_numbers_of_the_tables(tmp_path):
    """Also where one round of five is slow, which is more than 5 % of all times."""
    report = made.smollm2()
    first = report.configurations[0]
    first.samples[0] = ten_times_as_slow(first.samples[0])
    plot(report, tmp_path / "a.svg")
    drawn = svg_texts(tmp_path / "a-latency.svg")
    (table,) = [one for one in tables(summarize(report)) if one.title == "Latency and memory"]
    columns = [one for one in table.columns if one.head.startswith(("tpot", "itl"))]
    assert [one.head for one in columns] == ["tpot_ms", "itl_ms_p50", "itl_ms_p95", "itl_ms_p99"]
    tpot, *percentiles = [one.cells for one in columns]
    for name, *cells in zip(table.names, *percentiles, tpot, strict=True):
        place = drawn.index(name) + 1
        assert drawn[place : place + 4] == cells


def test_without_quality_speeds_are_bars(tmp_path):
    plot(CASES["without-quality"], tmp_path / "a.svg")
    texts = svg_texts(tmp_path / "a.svg")
    assert {"Prompt (pp512)", "Decode (tg128)", "8 answers at once", "tokens/s"} <= set(texts)
    assert "Pareto front" not in texts


@pytest.mark.parametrize(("report", "said"), [(made.two_models(), True), (CASES["measured"], False)])
def test_losses_of_several_models_are_told_apart(report, said, tmp_path):
    plot(report, tmp_path / "a.svg")
    assert ("Losses are against each model's own source" in " ".join(svg_texts(tmp_path / "a.svg"))) is said


def test_what_is_not_shown_is_named(tmp_path):
    plot(CASES["gaps"], tmp_path / "a.svg")
    texts = svg_texts(tmp_path / "a.svg")
    assert "Failed: optimum fp32 (The model has no encoder)." in texts
    assert "Without speed or quality: openvino int4, openvino fp16." in texts
    assert "The run was interrupted before everything was measured." in texts
    assert "Without times between tokens: torch fp32, openvino fp16." in svg_texts(tmp_path / "a-latency.svg")


@pytest.mark.parametrize(
    "name",
    ["<b>&\"'", "a-->b", "</text><script>alert(1)</script>", "$x^2$ \\frac{1}{2}", "]]>", "&lt;", "#1b1f24"],
)
def test_names_are_text(name, tmp_path):
    report = made.report(made.row(name, 83, 135, 0.01, model=name, error=f"It said {name}"))
    plot(report, tmp_path / "a.svg")
    plot(report, tmp_path / "a.html", advice=advice(report, 0.02))
    assert name in svg_texts(tmp_path / "a.svg")
    assert name in svg_texts(tmp_path / "a-latency.svg")
    page = Page((tmp_path / "a.html").read_text(encoding="utf-8"))
    assert "script" not in page.tags
    assert "b" not in page.tags
    assert page.text.count(name) > 4


def test_what_xml_cannot_hold_is_replaced(tmp_path):
    name = "a\x00b\x1bc\nd\udcffe\u202ef"
    report = made.report(made.row(name, 83, 135, 0.01, model=name))
    for kind in ("png", "svg", "html"):
        plot(report, tmp_path / f"a.{kind}", advice=advice(report, 0.02))
    replaced = "\N{REPLACEMENT CHARACTER}".join("abcdef")
    for file in ("a.svg", "a-latency.svg"):
        assert replaced in svg_texts(tmp_path / file)
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert Page(text).text.count(replaced) > 4
    assert not set("\x00\x1b\udcff\u202e") & set(text)


def test_a_page_stands_alone(tmp_path):
    plot(CASES["gaps"], tmp_path / "a.html")
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "image"} & set(page.tags)
    links = [value for name, value in page.attributes if name in ("href", "xlink:href", "src")]
    assert all(link.startswith("#") for link in links)
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in links} <= set(ids)
    assert "prefers-color-scheme: dark" in text
    assert "optimum fp32 failed: The model has no encoder. Traceback: …" in page.text
    for fact in (
        "Machine and versions",
        "Commands",
        "Arguments",
        "The run was interrupted: this is what had been measured.",
        "Intel(R) Xeon(R) Platinum 8481C",
        "2026.2",
        "83.2",
        "+0.9%",
        "hfpipe run 'openvino int8'",
    ):
        assert fact in page.text


@pytest.mark.parametrize("case", ["measured", "without-quality", "gaps", "chinese"])
def test_a_page_has_what_the_terminal_shows(case, tmp_path):
    report = CASES[case]
    summary, advised = summarize(report), advice(report, 0.02)
    plot(report, tmp_path / "a.html", advice=advised)
    page = Page((tmp_path / "a.html").read_text(encoding="utf-8"))
    for table in tables(summary):
        for line in (table.title, *table.notes):
            assert " ".join(line.split()) in page.text
        assert ["configuration", *(one.head for one in table.columns)] in page.rows
        for place, name in enumerate(table.names):
            assert [name, *(one.cells[place] for one in table.columns)] in page.rows
    assert (advised.name is None) == report.interrupted
    assert page.attributes.count(("class", "advised")) == sum(advised.name in one.names for one in tables(summary))
    for line in (advised.text, *advised.commands, *summary.warnings):
        assert line in page.text
    for name, meaning in meanings(summary).items():
        assert [name, meaning.replace("`", "")] in page.rows


def test_warnings_of_noise_are_on_a_page_and_code_is_code(tmp_path):
    report = made.smollm2()
    first = report.configurations[0]
    first.samples[:] = [
        replace(one, others_cpu=0.5, values={**one.values, "cold_ttft_s": 3.2}) for one in first.samples
    ]
    first.samples[0] = replace(first.samples[0], values={**first.samples[0].values, "tg128": 1.0})
    plot(report, tmp_path / "a.html")
    page = Page((tmp_path / "a.html").read_text(encoding="utf-8"))
    assert "The machine was busy: other processes used 50% of its processors" in page.text
    assert "The samples of torch bf16 spread: tg128 by " in page.text
    assert ["cold_ttft_s", "from the start of an hfpipe run process to its first token, in s"] in page.rows
    assert "hfpipe run" in page.code
    assert "`" not in page.text
    assert ("class", "advised") not in page.attributes


def test_pictures_on_a_page_do_not_shrink_until_nobody_can_read_them(tmp_path):
    plot(CASES["measured"], tmp_path / "a.html")
    page = Page((tmp_path / "a.html").read_text(encoding="utf-8"))
    assert page.attributes.count(("style", "min-width: calc(.9 * 576pt)")) == page.tags.count("svg") == 2
    assert page.tags.count("figure") == 2


def test_boxes_for_characters_are_told(tmp_path, monkeypatch):
    from hfpipe.bench.plots import draw

    said = []
    monkeypatch.setattr(draw, "tradeoff", lambda report, remarks: said.append(remarks))
    missing = made.report(made.row("\U000e0100", 83, 135, 0.01, model="\U0001f9ff\u4e2d"))
    plot(missing, tmp_path / "a.svg")
    plot(made.alone(), tmp_path / "a.png")
    assert said == [[], []]
    monkeypatch.setattr(draw, "unknown_characters", lambda text: True)
    plot(missing, tmp_path / "a.png")
    assert len(said[-1]) == 1


def test_the_same_report_gives_the_same_bytes(tmp_path):
    again = made.smollm2()
    for kind in ("png", "svg", "html"):
        first, second = plot(CASES["measured"], tmp_path / f"a.{kind}"), plot(again, tmp_path / f"b.{kind}")
        assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]


@pytest.mark.parametrize("name", ["a", "a.pdf", "a.png.gz", ".png"])
def test_another_suffix_is_wrong_usage(name, tmp_path):
    with pytest.raises(UsageError) as caught:
        plot(made.alone(), tmp_path / name)
    assert all(suffix in caught.value.hint for suffix in (".png", ".svg", ".html"))
    assert not list(tmp_path.iterdir())


def test_suffixes_may_be_in_capitals(tmp_path):
    assert plot(CASES["alone"], tmp_path / "A.PNG") == [tmp_path / "A.PNG", tmp_path / "A-latency.PNG"]


def test_a_place_that_is_not_there_is_one_line(tmp_path):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "no" / "a.png", tmp_path / "folder.png", tmp_path / "file" / "a.png"):
        for call in (lambda path=path: plot(made.alone(), path), lambda path=path: check_plot_path(path)):
            with pytest.raises(UsageError, match=r"has no folder: .* is none\.$|cannot be written: .*\.$"):
                call()


@pytest.mark.parametrize(
    ("number", "said"), [(errno.ENOSPC, "is full"), (errno.EROFS, "Read-only"), (errno.EACCES, "Permission")]
)
def test_a_failure_leaves_the_old_file_whole(number, said, tmp_path, monkeypatch):
    path = tmp_path / "a.html"
    path.write_text("old")

    def fail(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("hfpipe.batch.disk.os.fsync", fail)
    with pytest.raises(HFPipeError, match=said) as caught:
        plot(CASES["alone"], path)
    assert "\n" not in caught.value.message
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.html"]


def test_nothing_is_left_changed(tmp_path, monkeypatch):
    import logging
    import warnings

    import matplotlib

    monkeypatch.setenv("MPLBACKEND", "svg")
    before = dict(matplotlib.rcParams), logging.getLogger("matplotlib").level, list(warnings.filters)
    plot(made.chinese(), tmp_path / "a.png")
    assert (dict(matplotlib.rcParams), logging.getLogger("matplotlib").level, list(warnings.filters)) == before
    assert os.environ["MPLBACKEND"] == "svg"


FRESH = """
import json, sys
from pathlib import Path
import {module}
light = "matplotlib" in sys.modules
from tests.bench import made_plots
{module}.plot(made_plots.chinese(), Path(sys.argv[1]))
print(json.dumps([light, sorted(name for name in sys.modules if name.startswith("matplotlib.pyplot"))]))
"""


@pytest.mark.parametrize("place", ["/proc/none", "new", None])
def test_matplotlib_is_imported_late_and_in_silence(place, tmp_path):
    """Its home cannot be written, is new, or is not known; its settings and its backend are nonsense."""
    (tmp_path / "matplotlibrc").write_text("axes.grid: perhaps\nno.such: thing\nfont.family: Nowhere\n")
    env = {**os.environ, "PYTHONPATH": str(made.ROOT), "MPLBACKEND": "nonsense", "HOME": str(tmp_path / "home")}
    env.pop("MPLCONFIGDIR", None)
    if place:
        env["MPLCONFIGDIR"] = str(tmp_path / place)
    code = FRESH.format(module=module.__name__)
    command = [sys.executable, "-c", code, str(tmp_path / "a.png")]
    ended = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert json.loads(ended.stdout) == [False, []]
