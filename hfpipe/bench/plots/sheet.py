"""What all pictures share: colours, type, and a sheet with a title, notes and text that fits. Lengths are in points."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.text import Text
from matplotlib.transforms import Affine2D

WIDTH = 576.0
MARGIN = 14.0
SMALL, NORMAL, LARGE = 7.5, 8.5, 12.0
DPI = 200
HEAD = 46.0
_LINE = 10.5

# By name, since a page has other ones in the dark. Okabe and Ito's hues, which the colour-blind tell apart.
COLOURS = {
    "ink": "#1b1f24",
    "grey": "#59636e",
    "line": "#8c959f",
    "grid": "#e3e7eb",
    "shade": "#f1f3f6",
    "paper": "#ffffff",
    "blue": "#0072b2",
    "red": "#d55e00",
    "green": "#009e73",
    "purple": "#b6598f",
    "orange": "#c98a00",
}
DARK = {
    "ink": "#e6edf3",
    "grey": "#a5afba",
    "line": "#7d8792",
    "grid": "#2f363d",
    "shade": "#1e242b",
    "paper": "#0d1117",
    "blue": "#56b4e9",
    "red": "#f0883e",
    "green": "#2fc297",
    "purple": "#dd8fbd",
    "orange": "#e6b13a",
}
_HUES = {"openvino": "blue", "torch": "red", "optimum": "green"}
_OTHER_HUES = ("purple", "orange", "grey")

# For names in other scripts; the first that is installed and has a character is taken.
_FALLBACKS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans SC",
    "Source Han Sans SC",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "PingFang SC",
    "Hiragino Sans GB",
    "Heiti SC",
    "Microsoft YaHei",
    "SimHei",
    "Apple SD Gothic Neo",
    "Malgun Gothic",
    "Noto Sans Devanagari",
    "Noto Sans Arabic",
    "Noto Sans Thai",
    "Arial Unicode MS",
)


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib with its own settings and ours, not the user's; as before at the end. Missing glyphs are silent."""
    installed = set(font_manager.get_font_names())
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "font.family": ["DejaVu Sans", *(name for name in _FALLBACKS if name in installed)],
                "font.size": NORMAL,
                "text.color": COLOURS["ink"],
                "text.parse_math": False,
                "axes.edgecolor": COLOURS["line"],
                "axes.labelcolor": COLOURS["ink"],
                "axes.linewidth": 0.8,
                "axes.axisbelow": True,
                "grid.color": COLOURS["grid"],
                "grid.linewidth": 0.7,
                "xtick.color": COLOURS["line"],
                "ytick.color": COLOURS["line"],
                "xtick.labelcolor": COLOURS["grey"],
                "ytick.labelcolor": COLOURS["grey"],
                "svg.fonttype": "none",
                "svg.hashsalt": "hfpipe",
            }
        )
        yield


def hues(backends: Sequence[str]) -> dict[str, str]:
    """A colour for each backend, the same one in every picture."""
    others = [name for name in dict.fromkeys(backends) if name not in _HUES]
    spare = {name: _OTHER_HUES[min(place, len(_OTHER_HUES) - 1)] for place, name in enumerate(others)}
    return {name: COLOURS[{**spare, **_HUES}[name]] for name in dict.fromkeys(backends)}


def text_width(text: str, size: float, *, bold: bool = False) -> float:
    """Call it within `style()`. A character that no font here has counts as a square: a viewer may have it."""
    font = FontProperties(size=size, weight="bold" if bold else "normal")
    renderer: Any = RendererAgg(1, 1, DPI)  # type: ignore[no-untyped-call]
    width = renderer.get_text_width_height_descent(text, font, False)[0] * 72 / DPI
    return max(float(width), size * sum(1.0 if ord(one) > 0x2E7F else 0.2 for one in text))


def shorten(text: str, room: float, size: float, *, bold: bool = False) -> str:
    """Without its middle, where it is longer than the room."""
    kept = len(text)
    short = text
    while kept > 2 and text_width(short, size, bold=bold) > room:
        kept -= max(1, kept // 20)
        short = f"{text[: (kept + 1) // 2]}…{text[-(kept // 2) :]}"
    return short


def wrap(text: str, room: float, size: float, *, bold: bool = False) -> list[str]:
    """Lines that fit the room, ended at blanks, and in words that are too long for a line after some mark."""
    lines = [""]
    for piece in _pieces(text, room, size, bold):
        if lines[-1] and text_width((lines[-1] + piece).rstrip(), size, bold=bold) > room:
            lines.append("")
        lines[-1] += piece
    return [line.strip() for line in lines]


def _pieces(text: str, room: float, size: float, bold: bool) -> Iterator[str]:
    for word in text.split(" "):
        if text_width(word, size, bold=bold) <= room:
            yield f"{word} "
            continue
        piece = ""
        for one in word:
            piece += one
            if one in "-_/.," or ord(one) > 0x2E7F or text_width(piece, size, bold=bold) > room - 2 * size:
                yield piece
                piece = ""
        yield f"{piece} "


class Sheet:
    """A figure of a width and height with text at places in points, from the lower left."""

    def __init__(self, height: float, *, width: float = WIDTH) -> None:
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width / 72, height / 72), dpi=DPI, facecolor=COLOURS["paper"])
        FigureCanvasAgg(self.figure)
        self.points = Affine2D().scale(1 / 72) + self.figure.dpi_scale_trans

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = NORMAL,
        colour: str = "ink",
        bold: bool = False,
        **more: Any,
    ) -> Text:
        colour = COLOURS.get(colour, colour)
        weight = "bold" if bold else "normal"
        return self.figure.text(x, y, text, transform=self.points, size=size, color=colour, weight=weight, **more)

    def axes(self, left: float, bottom: float, right: float, top: float) -> Axes:
        box = (left / self.width, bottom / self.height, (right - left) / self.width, (top - bottom) / self.height)
        axes = self.figure.add_axes(box, facecolor="none")
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(length=3, width=0.8, labelsize=SMALL + 0.5)
        return axes

    def head(self, subject: str, about: str, under: str, key: dict[str, str]) -> float:
        """The title of two parts, the line under it, and what colours mean. Returns where the head ends."""
        room = self.width - 2 * MARGIN - text_width(f": {about}", LARGE, bold=True)
        title = f"{shorten(subject, room, LARGE, bold=True)}: {about}"
        self.text(MARGIN, self.height - 24, title, size=LARGE, bold=True)
        right = self.width - MARGIN
        for name, colour in reversed(key.items() if len(key) > 1 else ()):
            entry = f"● {name}"
            self.text(right, self.height - 39, entry, colour=colour, ha="right")
            right -= text_width(entry, NORMAL) + 10
        self.text(MARGIN, self.height - 39, shorten(under, right - MARGIN - 6, NORMAL), colour="grey")
        return self.height - HEAD

    def foot(self, lines: Sequence[str]) -> None:
        """Notes at the bottom, wrapped before by `foot_lines`."""
        for place, line in enumerate(reversed(lines)):
            self.text(MARGIN, MARGIN - 3 + place * _LINE, line, size=SMALL, colour="grey")


def unknown_characters(text: str) -> bool:
    """Whether no font that is installed has one of the characters. Call it within `style()`."""
    families = matplotlib.rcParams["font.family"]
    fonts = [font_manager.get_font(font_manager.findfont(FontProperties(family=family))) for family in families]
    return any(not any(font.get_char_index(ord(one)) for font in fonts) for one in set(text))


def foot_lines(notes: Sequence[str], width: float = WIDTH) -> list[str]:
    return [line for note in notes for line in wrap(note, width - 2 * MARGIN, SMALL)]


def foot_height(lines: Sequence[str]) -> float:
    return MARGIN + len(lines) * _LINE + (6 if lines else 0)


def saved(figure: Figure, kind: str, title: str) -> bytes:
    """The file of a figure; the same bytes for the same figure."""
    file = io.BytesIO()
    creator = {
        "svg": {"Date": None, "Creator": "hfpipe", "Title": title},
        "png": {"Software": "hfpipe", "Title": title},
    }
    figure.savefig(file, format=kind, metadata=creator[kind], dpi=DPI if kind == "png" else 72)
    if kind == "svg":
        # The font may not be where it is shown; Verdana is as wide.
        return re.sub(rb"(?<=font-family: )[^;\"]*", rb"\g<0>, Verdana, sans-serif", file.getvalue())
    return file.getvalue()
