"""Pictures of made reports: the files, and what stands in them."""

import errno
import os
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfpipe.bench.advice import advice, warnings
from hfpipe.bench.plot import pareto, plot
from hfpipe.bench.tables import clean, meanings, tables
from hfpipe.errors import HFPipeError, UsageError
from tests.bench import made

pytestmark = pytest.mark.filterwarnings("ignore:Glyph")


def svg_texts(path):
    root = ElementTree.parse(path).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    return ["".join(one.itertext()) for one in root.iter("{http://www.w3.org/2000/svg}text")]


class Page(HTMLParser):
    """Tags, attributes and text of a page; the cells of each row of its tables."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.attributes, self.text, self.rows = [], [], "", []
        self.cell = False
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            self.rows[-1].append("")
            self.cell = True

    def handle_endtag(self, tag):
        self.cell = self.cell and tag not in ("th", "td")

    def handle_data(self, data):
        self.text += data
        if self.cell:
            self.rows[-1][-1] += data


@pytest.mark.parametrize("case", made.CASES)
def test_every_report_has_pictures_with_nothing_cut_off(case, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    figures, save = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **more: (figures.append(self), save(self, *args, **more))
    )
    report = case()
    timed = any(sample.itl_ms for row in report.configurations for sample in row.samples)
    names = ["a.png", "a-latency.png"] if timed else ["a.png"]
    assert plot(report, tmp_path / "a.png") == [tmp_path / name for name in names]
    for figure, name in zip(figures, names, strict=True):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
        assert min(box.x0, box.y0, width - box.x1, height - box.y1) > -0.01
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


@pytest.mark.parametrize("case", made.CASES)
def test_a_page_has_what_the_terminal_shows(case, tmp_path):
    """Whatever names are, they are text; and it needs nothing from elsewhere."""
    report = case()
    advised = advice(report, 0.02)
    assert plot(report, tmp_path / "a.html", advice=advised) == [tmp_path / "a.html"]
    page = Page(tmp_path / "a.html")
    for table in tables(report):
        for line in (table.title, *table.notes):
            assert clean(" ".join(line.split())) in page.text
        assert ["configuration", *table.columns] in page.rows
        for cells in zip(table.names, *table.columns.values(), strict=True):
            assert list(map(clean, cells)) in page.rows
    assert page.attributes.count(("class", "advised")) == sum(advised.name in one.names for one in tables(report))
    for line in (advised.text, *advised.commands, *warnings(report)):
        assert clean(line) in page.text
    for name, meaning in meanings(report).items():
        assert [name, meaning] in page.rows
    for fact in ("Machine and versions", "Commands", "Arguments", "Intel(R) Xeon(R) Platinum 8481C", "2026.2"):
        assert fact in page.text
    assert not {"script", "link", "iframe", "b"} & set(page.tags)
    links = [value for name, value in page.attributes if name in ("href", "src")]
    assert links
    assert all(link.startswith("data:image/svg+xml;base64,") for link in links)


@pytest.mark.parametrize("case", [made.usual, made.gaps, made.crowd, made.names, made.extremes])
def test_every_configuration_is_named(case, tmp_path):
    report = case()
    for path in plot(report, tmp_path / "a.svg"):
        text = "\n".join(svg_texts(path))
        assert [row.name for row in report.configurations if clean(row.name)[:30] not in text] == []


def test_what_a_picture_says(tmp_path):
    report = made.usual()
    for row in report.configurations:
        row.model = "/home/somebody/models/gpt2"
    plot(report, tmp_path / "a.svg")
    texts = svg_texts(tmp_path / "a.svg")
    for text in (
        "gpt2: decode speed against loss of quality",
        "Intel Xeon Platinum 8481C · 2 cores · 2026-11-22",
        "Decode speed (tg128), tokens/s  (right is better)",
        "Perplexity above the source's, %  (up is better)",
        "Pareto front",
        "4  openvino int4: 170 tok/s · 90 MB · +5.2%",
    ):
        assert text in texts
    assert "each model's own source" not in " ".join(texts)
    latency = svg_texts(tmp_path / "a-latency.svg")
    assert {"p50", "p95", "p99", "tpot", "Time between tokens, ms  (left is better)"} <= set(latency)
    (table,) = [one for one in tables(report) if one.title == "Latency and memory"]
    heads = {"p50": "itl_ms_p50", "p95": "itl_ms_p95", "p99": "itl_ms_p99", "tpot": "tpot_ms"}
    for place, name in enumerate(table.names):
        numbers = " · ".join(f"{short} {table.columns[head][place]}" for short, head in heads.items())
        assert latency[latency.index(name) + 1] == f"{numbers} ms"


def test_without_quality_speeds_are_bars(tmp_path):
    report = made.usual()
    for row in report.configurations:
        row.quality = None
    plot(report, tmp_path / "a.svg")
    texts = svg_texts(tmp_path / "a.svg")
    assert {"Prompt (pp512), tokens/s", "Decode (tg128), tokens/s", "8 answers at once, tokens/s"} <= set(texts)
    assert "Pareto front" not in texts


def test_losses_of_several_models_are_told_apart(tmp_path):
    report = made.usual()
    report.configurations[0].quality = made.quality(reference_perplexity=8.0)
    plot(report, tmp_path / "a.svg")
    assert "Losses are against each model's own source" in " ".join(svg_texts(tmp_path / "a.svg"))


def test_what_is_not_shown_is_named(tmp_path):
    plot(made.gaps(), tmp_path / "a.svg")
    texts = svg_texts(tmp_path / "a.svg")
    assert "Failed: optimum fp32 (The model has no encoder)." in texts
    assert "Without speed or quality: openvino int4, openvino fp16." in texts
    assert "The run was interrupted before everything was measured." in texts
    assert "Without times between tokens: torch fp32, openvino fp16." in svg_texts(tmp_path / "a-latency.svg")


def test_the_same_report_gives_the_same_bytes(tmp_path):
    for kind in ("PNG", "html"):
        first, second = (plot(made.gaps(), tmp_path / f"{name}.{kind}") for name in "ab")
        assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]


@pytest.mark.parametrize("name", ["a", "a.pdf", "a.png.gz", ".png"])
def test_another_suffix_is_wrong_usage(name, tmp_path):
    with pytest.raises(UsageError) as caught:
        plot(made.usual(), tmp_path / name)
    assert caught.value.message.endswith("(use .png, .svg or .html).")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["no/a.png", "folder.png", "file/a.png"])
def test_a_place_that_is_not_there_is_one_line(place, tmp_path):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_text("")
    said = r"(?m)^Cannot write to .*: (No such file or directory|Not a directory|it is a folder)\.$"
    with pytest.raises(UsageError, match=said):
        plot(made.usual(), tmp_path / place)


@pytest.mark.parametrize(("number", "said"), [(errno.ENOSPC, "is full"), (errno.EROFS, "Read-only file system")])
def test_a_failure_leaves_the_old_file_whole(number, said, tmp_path, monkeypatch):
    path = tmp_path / "a.html"
    path.write_text("old")

    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("hfpipe.store.Path.replace", fail)
    with pytest.raises(HFPipeError, match=said) as caught:
        plot(made.empty(), path)
    assert "\n" not in caught.value.message
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.html"]


def test_settings_of_the_user_are_not_changed(tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    plot(made.empty(), tmp_path / "a.png")
    assert dict(matplotlib.rcParams) == before


@given(st.lists(st.tuples(st.integers(0, 6).map(float), st.integers(-3, 3).map(float)), max_size=12))
def test_the_front_is_what_nothing_beats(choices):
    def beaten(one):
        return any(other[0] >= one[0] and other[1] <= one[1] and other != one for other in choices)

    assert pareto(choices) == sorted({one for one in choices if not beaten(one)})
