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
from hypothesis import given
from hypothesis import strategies as st

from hfpipe.bench import plot as module
from hfpipe.bench.advice import advice, warnings
from hfpipe.bench.plot import pareto, plot
from hfpipe.bench.tables import meanings, tables
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


def svg_texts(path):
    root = ElementTree.parse(path).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    return ["".join(one.itertext()) for one in root.iter("{http://www.w3.org/2000/svg}text")]


class Page(HTMLParser):
    """Tags, attributes and text of a page; the cells of each row of its tables."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text, self.rows = [], [], "", []
        self.within = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag in ("th", "td"):
            self.within.append(tag)
        if tag in ("th", "td"):
            self.rows[-1].append("")
        elif tag == "tr":
            self.rows.append([])

    def handle_endtag(self, tag):
        if tag in self.within:
            self.within.remove(tag)

    def handle_data(self, data):
        self.text += data
        if self.within:
            self.rows[-1][-1] += data


@pytest.fixture
def figures(monkeypatch):
    """Those that are saved."""
    from matplotlib.figure import Figure

    found, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **more: (found.append(self), save(self, *args, **more)))
    return found


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore:Glyph")
def test_every_report_has_pictures_with_nothing_cut_off(case, tmp_path, figures):
    report = CASES[case]
    timed = any(sample.itl_ms for row in report.configurations for sample in row.samples)
    names = ["a.png", "a-latency.png"] if timed else ["a.png"]
    assert plot(report, tmp_path / "a.png") == [tmp_path / name for name in names]
    for figure, name in zip(figures, names, strict=True):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
        assert box.x0 > -0.01
        assert box.y0 > -0.01
        assert box.x1 < width + 0.01
        assert box.y1 < height + 0.01
    assert plot(report, tmp_path / "a.html") == [tmp_path / "a.html"]
    assert Page((tmp_path / "a.html").read_text(encoding="utf-8")).tags.count("img") == 1 + timed
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
        "Intel Xeon Platinum 8481C · 2 cores · 2026-11-22",
        "Decode speed (tg128), tokens/s  (right is better)",
        "Perplexity above the source's, %  (up is better)",
        "Pareto front",
        "4  openvino int4: 94.3 tok/s · 104 MB · +5.3%",
    ):
        assert text in texts
    latency = svg_texts(tmp_path / "a-latency.svg")
    assert {"p50", "p95", "p99", "tpot", "Time between tokens, ms  (left is better)"} <= set(latency)


def test_titles_have_names_without_their_folders(tmp_path):
    models = [f"/home/somebody/models/{name}" for name in "abcde"]
    plot(made.report(*(made.row(one, 50, model=one) for one in models)), tmp_path / "a.svg")
    assert "a, b, c and 2 more: speed" in svg_texts(tmp_path / "a.svg")
    assert "a, b, c and 2 more: time per token" in svg_texts(tmp_path / "a-latency.svg")


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
    (table,) = [one for one in tables(report) if one.title == "Latency and memory"]
    columns = [one for one in table.columns if one.head.startswith(("tpot", "itl"))]
    assert [one.head for one in columns] == ["tpot_ms", "itl_ms_p50", "itl_ms_p95", "itl_ms_p99"]
    tpot, *percentiles = [one.cells for one in columns]
    for name, p50, p95, p99, each in zip(table.names, *percentiles, tpot, strict=True):
        assert drawn[drawn.index(name) + 1] == f"p50 {p50} · p95 {p95} · p99 {p99} · tpot {each} ms"


def test_without_quality_speeds_are_bars(tmp_path):
    plot(CASES["without-quality"], tmp_path / "a.svg")
    texts = svg_texts(tmp_path / "a.svg")
    assert {"Prompt (pp512), tokens/s", "Decode (tg128), tokens/s", "8 answers at once, tokens/s"} <= set(texts)
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
    assert any(name in text for text in svg_texts(tmp_path / "a.svg"))
    assert name in svg_texts(tmp_path / "a-latency.svg")
    page = Page((tmp_path / "a.html").read_text(encoding="utf-8"))
    assert "script" not in page.tags
    assert "b" not in page.tags
    assert page.text.count(name) > 4


def test_what_xml_cannot_hold_is_replaced(tmp_path):
    name = "a\x00b\x1bc\x07d\udcffe\u202ef"
    report = made.report(made.row(name, 83, 135, 0.01, model=name))
    for kind in ("png", "svg", "html"):
        plot(report, tmp_path / f"a.{kind}", advice=advice(report, 0.02))
    replaced = "\N{REPLACEMENT CHARACTER}".join("abcdef")
    for file in ("a.svg", "a-latency.svg"):
        assert any(replaced in text for text in svg_texts(tmp_path / file))
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert Page(text).text.count(replaced) > 4
    assert not set("\x00\x1b\udcff\u202e") & set(text)


def test_a_page_stands_alone(tmp_path):
    plot(CASES["gaps"], tmp_path / "a.html")
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not {"script", "link", "iframe"} & set(page.tags)
    links = [value for name, value in page.attributes if name in ("href", "src")]
    assert links
    assert all(link.startswith("data:image/svg+xml;base64,") for link in links)
    assert "optimum fp32 failed: The model has no encoder. Traceback: …" in page.text
    for fact in (
        "Machine and versions",
        "Commands",
        "Arguments",
        "The run was interrupted: the report has what was measured until then.",
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
    advised = advice(report, 0.02)
    plot(report, tmp_path / "a.html", advice=advised)
    page = Page((tmp_path / "a.html").read_text(encoding="utf-8"))
    for table in tables(report):
        for line in (table.title, *table.notes):
            assert " ".join(line.split()) in page.text
        assert ["configuration", *(one.head for one in table.columns)] in page.rows
        for place, name in enumerate(table.names):
            assert [name, *(one.cells[place] for one in table.columns)] in page.rows
    assert (advised.name is None) == report.interrupted
    assert page.attributes.count(("class", "advised")) == sum(advised.name in one.names for one in tables(report))
    for line in (advised.text, *advised.commands, *warnings(report)):
        assert line in page.text
    for name, meaning in meanings(report).items():
        assert [name, meaning] in page.rows


def test_warnings_of_noise_are_on_a_page(tmp_path):
    report = made.smollm2()
    first = report.configurations[0]
    first.samples[:] = [
        replace(one, others_cpu=0.5, values={**one.values, "cold_ttft_s": 3.2}) for one in first.samples
    ]
    first.samples[0] = replace(first.samples[0], values={**first.samples[0].values, "tg128": 1.0})
    plot(report, tmp_path / "a.html")
    page = Page((tmp_path / "a.html").read_text(encoding="utf-8"))
    assert "The machine was busy while torch bf16 ran: other processes used up to 50% of its processors" in page.text
    assert "The samples of torch bf16 spread: tg128 by " in page.text
    assert ["cold_ttft_s", "from the start of a process, as `hfpipe run`, to its first token, in s"] in page.rows
    assert ("class", "advised") not in page.attributes


def test_the_same_report_gives_the_same_bytes(tmp_path):
    again = made.smollm2()
    for kind in ("png", "svg", "html"):
        first, second = plot(CASES["measured"], tmp_path / f"a.{kind}"), plot(again, tmp_path / f"b.{kind}")
        assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]


@pytest.mark.parametrize("name", ["a", "a.pdf", "a.png.gz", ".png"])
def test_another_suffix_is_wrong_usage(name, tmp_path):
    with pytest.raises(UsageError) as caught:
        plot(made.alone(), tmp_path / name)
    assert caught.value.message.endswith("(use .png, .svg or .html).")
    assert not list(tmp_path.iterdir())


def test_suffixes_may_be_in_capitals(tmp_path):
    assert plot(CASES["alone"], tmp_path / "A.PNG") == [tmp_path / "A.PNG", tmp_path / "A-latency.PNG"]


def test_a_place_that_is_not_there_is_one_line(tmp_path):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "no" / "a.png", tmp_path / "folder.png", tmp_path / "file" / "a.png"):
        with pytest.raises(
            UsageError, match=r"(?m)^Cannot write .*: (No such file or directory|Not a directory|it is a folder)\.$"
        ):
            plot(made.alone(), path)


@pytest.mark.parametrize(
    ("number", "said"), [(errno.ENOSPC, "No space left"), (errno.EROFS, "Read-only"), (errno.EACCES, "Permission")]
)
def test_a_failure_leaves_the_old_file_whole(number, said, tmp_path, monkeypatch):
    path = tmp_path / "a.html"
    path.write_text("old")

    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("hfpipe.store.Path.replace", fail)
    with pytest.raises(HFPipeError, match=said) as caught:
        plot(CASES["alone"], path)
    assert "\n" not in caught.value.message
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.html"]


def test_nothing_is_left_changed(tmp_path, monkeypatch):
    import logging
    import warnings as filters

    import matplotlib

    monkeypatch.setenv("MPLBACKEND", "svg")
    before = dict(matplotlib.rcParams), logging.getLogger("matplotlib").level, list(filters.filters)
    plot(made.chinese(), tmp_path / "a.png")
    assert (dict(matplotlib.rcParams), logging.getLogger("matplotlib").level, list(filters.filters)) == before
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


@pytest.mark.parametrize("place", ["/proc/none", None])
def test_matplotlib_is_imported_late_and_in_silence(place, tmp_path):
    """Its home cannot be written, or is new; its settings and its backend are nonsense."""
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


@given(st.lists(st.tuples(st.integers(0, 6).map(float), st.integers(-3, 3).map(float)), max_size=12))
def test_the_front_is_what_nothing_beats(choices):
    def beaten(one):
        return any(other[0] >= one[0] and other[1] <= one[1] and other != one for other in choices)

    assert pareto(choices) == sorted({one for one in choices if not beaten(one)})


def test_the_front_of_made_points():
    assert pareto([(34, 0), (70, 0.02), (83, 0.9), (95, 5.3), (60, 3)]) == [(70, 0.02), (83, 0.9), (95, 5.3)]
