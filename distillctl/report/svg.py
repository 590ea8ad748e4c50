"""The charts of the report, drawn by matplotlib as inline SVG in the page's own colours and font.

Each chart is drawn twice, for a wide and a narrow window, and the page's style shows one of them. Colours are written
as stand-ins and replaced by CSS variables, so one drawing serves light and dark. Ids are stable and unique.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

NAMES = {
    "ceiling": ("Ceiling", "teacher, whole prompt"),
    "deployed": ("Deployed", "quantized student"),
    "student": ("Student", "no prompt"),
    "control": ("Control", "student, bare answers"),
    "floor": ("Floor", "teacher, student's view"),
    "majority": ("Majority", "the most frequent label"),
    "bag_of_words": ("Bag of words", "linear, same soft labels"),
    "most_frequent": ("Most frequent", "the most frequent answer"),
    "nearest_row": ("Nearest row", "the most similar row's answer"),
    "teacher": ("Teacher", "whole prompt"),
    "teacher_cached": ("Teacher, cached", "prompt kept in memory"),
    "teacher_genai": ("Teacher, int4", "prompt kept in memory, onnxruntime-genai"),
    "fp32": ("Student, fp32", "ONNX Runtime"),
    "deployed_genai": ("Deployed, genai", "onnxruntime-genai"),
}
"""Arm or model → its name and what it is."""

_COLOURS = ("ink", "muted", "grid", "ceiling", "floor", "student", "deployed", "control", "band", "card")
COLOUR = {name: f"#0101{index:02x}" for index, name in enumerate(_COLOURS, 1)}
"""The page's CSS variables → what stands for them in a drawing."""
_OF_MODEL = {"fp32": "student", "deployed_genai": "deployed"}
_OF_MODEL |= dict.fromkeys(("teacher", "teacher_cached", "teacher_genai"), "ceiling")
Stem = tuple[float, str, str, bool]
"""Length, how it is written, colour, whether the dot is filled."""
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 13,
    "text.color": COLOUR["ink"],
    "axes.labelcolor": COLOUR["muted"],
    "axes.edgecolor": COLOUR["grid"],
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": COLOUR["grid"],
    "xtick.color": COLOUR["muted"],
    "ytick.color": COLOUR["ink"],
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "legend.frameon": False,
    "text.parse_math": False,
}


def panels(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """Return a figure whose units are CSS pixels, and its axes."""
    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def name_row(ax: Axes, row: int, item: str, main: str, more: str, wide: bool) -> None:
    """Write a row's name left of the axes and its figures right of them, with a second line where there is room."""
    name, note = NAMES.get(item, (item, "teacher, an arm of the recipe"))
    for x, align, first, second in ((-0.02, "right", name, note), (1.02, "left", main, more)):
        place: dict[str, Any] = {"transform": ax.get_yaxis_transform(), "ha": align, "va": "center"}
        ax.text(x, row - 0.19 * wide, first, weight="bold", **place)
        if wide:
            ax.text(x, row + 0.21, second, size=11, color=COLOUR["muted"], **place)
    ax.yaxis.set_major_locator(NullLocator())


def title(ax: Axes, text: str) -> None:
    """Write a chart's title above its left edge."""
    ax.set_title(text, loc="left", fontsize=13, weight="bold")


def stems(ax: Axes, rows: Sequence[Stem], reach: float) -> None:
    """Draw a line with a dot and its figure per row, from 0 to at most ``reach``. The caller writes the names."""
    for index, (length, written, colour, filled) in enumerate(rows):
        ax.plot([0, length], [index, index], color=colour, lw=2, alpha=0.45)
        ax.plot(length, index, "o", color=colour, ms=8, mfc=colour if filled else COLOUR["card"], clip_on=False)
        end: dict[str, Any] = {"xy": (length, index), "xytext": (9, 0), "textcoords": "offset points"}
        under = {"facecolor": COLOUR["card"], "edgecolor": "none", "pad": 1.5}
        ax.annotate(written, **end, va="center", size=11.5, bbox=under)
    ax.set_xlim(0, (reach or 1.0) * 1.5)
    ax.set_ylim(len(rows) - 0.5, -1)
    ax.tick_params("y", pad=8)
    ax.xaxis.set_major_locator(NullLocator())
    ax.spines.bottom.set_visible(False)
    ax.grid(False)


def colour(item: str) -> str:
    """Return the colour of an arm or model."""
    return COLOUR.get(_OF_MODEL.get(item, item), COLOUR["muted"])


def named(item: str) -> str:
    """Return an arm's or model's name as readers know it."""
    return NAMES.get(item, (item,))[0]


def drawn(name: str, label: str, draw: Callable[[bool], Figure]) -> Markup:
    """Return both drawings of a chart, each an `svg` with ``label`` for screen readers."""
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": name}):
        drawings = [(form, _svg(draw(form == "wide"))) for form in ("wide", "narrow")]
    return Markup("").join(
        Markup('<div class="{}">{}</div>').format(form, _embedded(svg, f"{name}-{form}-", label))
        for form, svg in drawings
    )


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
    )
    return buffer.getvalue()


def _embedded(svg: str, prefix: str, label: str) -> Markup:
    """Turn matplotlib's document into an element of the page: own ids, the page's colours and font, no global style."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    described = f'role="img" aria-label="{escape(label)}"'
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', lambda _: described, svg, count=1)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", svg)
    for name, stand_in in COLOUR.items():
        svg = svg.replace(stand_in, f"var(--{name})")
    return Markup(svg)
