"""The report's charts: matplotlib, as inline SVG in the page's own colours and font.

Each chart is drawn twice, for a wide and a narrow window, and the page's style shows one of them. Colours are written
as stand-ins and replaced by CSS variables, so one drawing serves light and dark. Ids are stable, and no two are alike.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from distillctl.report import numbers

NAMES = {
    "ceiling": ("Ceiling", "teacher, whole prompt"),
    "deployed": ("Deployed", "quantized student"),
    "student": ("Student", "no prompt"),
    "control": ("Control", "student on hard labels"),
    "floor": ("Floor", "teacher, student's view"),
    "teacher": ("Teacher", "whole prompt"),
    "teacher_cached": ("Teacher, cached", "prompt kept in memory"),
    "fp32": ("Student, fp32", "ONNX Runtime"),
}
"""Arm or model → its name and what it is."""

_COLOURS = ("ink", "muted", "grid", "ceiling", "floor", "student", "deployed", "control", "band", "card")
_STAND_IN = {name: f"#0101{index:02x}" for index, name in enumerate(_COLOURS, 1)}
_OF_MODEL = {"teacher": "ceiling", "teacher_cached": "ceiling", "fp32": "student"}
_POINTS = 120  # drawn per curve or model: enough to see a shape, whatever was recorded
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 13,
    "text.color": _STAND_IN["ink"],
    "axes.labelcolor": _STAND_IN["muted"],
    "axes.edgecolor": _STAND_IN["grid"],
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _STAND_IN["grid"],
    "xtick.color": _STAND_IN["muted"],
    "ytick.color": _STAND_IN["ink"],
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "legend.frameon": False,
    "text.parse_math": False,
}


def arms(facts: Mapping[str, Any]) -> Markup:
    """Every arm's score with its interval, over the band between floor and ceiling."""
    found = facts["arms"]
    floor, ceiling = (found[arm]["score"] for arm in ("floor", "ceiling"))

    def draw(wide: bool) -> Figure:
        figure, axes = _panels(760 if wide else 350, 46 * len(found) + 70)
        ax = axes[0]
        ax.axvspan(floor, ceiling, color=_STAND_IN["band"], lw=0)
        ax.text((floor + ceiling) / 2, -0.72, "what the context adds", ha="center", va="center", size=11.5)
        for row, (arm, score) in enumerate(found.items()):
            colour = _colour(arm)
            ax.plot([score["low"], score["high"]], [row, row], color=colour, lw=7, alpha=0.35, solid_capstyle="round")
            ax.plot(score["score"], row, "o", color=colour, ms=10)
            _row(ax, row, arm, numbers.percent(score["score"]), numbers.interval(score), wide)
        ax.set_ylim(len(found) - 0.5, -1)
        ax.xaxis.set_major_locator(MaxNLocator(6 if wide else 4))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
        return figure

    told = ", ".join(f"{_named(arm)} {numbers.percent(score['score'])}" for arm, score in found.items())
    return _drawn("arms", f"Score of each arm with its 95 % interval: {told}.", draw)


def training(lines: Sequence[Mapping[str, Any]]) -> Markup:
    """Loss per step and KL on the validation rows, for the student and its control."""

    def draw(wide: bool) -> Figure:
        figure, axes = _panels(760, 260, columns=2) if wide else _panels(350, 460, rows=2)
        for ax, key, title in zip(axes, ("loss", "kl"), ("Training loss", "KL on validation rows, nats"), strict=True):
            for run in ("control", "student"):
                points = [
                    (line["step"], line[key]) for line in lines if line["run"] == run and line.get(key) is not None
                ]
                if points:
                    steps, values = _thinned(np.array(points)).T
                    style = "-" if key == "loss" else "-o"
                    ax.plot(steps, values, style, color=_STAND_IN[run], lw=2, ms=4, label=run)
            ax.set_title(title, loc="left", fontsize=13, weight="bold")
            ax.set_xlabel("step")
            ax.set_ylim(bottom=0)
            ax.yaxis.set_major_locator(MaxNLocator(5))
            ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        if len(axes[0].lines) > 1:
            axes[0].legend(*map(reversed, axes[0].get_legend_handles_labels()), labelcolor=_STAND_IN["ink"])
        return figure

    kl = [line["kl"] for line in lines if line["run"] == "student" and line.get("kl") is not None]
    told = f" The student's KL goes from {kl[0]:.3f} to a best of {min(kl):.3f} nats." if kl else ""
    return _drawn("training", f"Training loss and KL on the validation rows by step.{told}", draw)


def candidates(facts: Mapping[str, Any]) -> Markup:
    """Size, latency and distance from the fp32 student, one row per candidate; those outside the gate are hollow."""
    fp32 = {"name": "fp32", "kl": 0.0, "inside": True, "chosen": False, **facts["fp32"]}
    rows = [fp32, *facts["candidates"]]
    panels = (
        ("bytes", "Size", numbers.size),
        ("p50_ms", "Latency, p50", numbers.duration),
        ("kl", "KL to fp32, nats", numbers.nats),
    )

    names = [textwrap.fill(row["name"].replace("_", " "), 22) for row in rows]

    def draw(wide: bool) -> Figure:
        height = 42 * len(rows) + 60
        figure, axes = _panels(760, height, columns=3) if wide else _panels(350, 3 * height, rows=3)
        for ax, (key, title, written) in zip(axes, panels, strict=True):
            gate = facts["gate"]["max_kl"] if key == "kl" else None
            lengths = [row[key] or 0.0 for row in rows]  # a KL that is not finite is null
            most = max(*lengths, gate or 0.0) or 1.0
            for index, (row, length) in enumerate(zip(rows, lengths, strict=True)):
                colour = _STAND_IN["deployed" if row["chosen"] else "student" if row is fp32 else "muted"]
                ax.plot([0, length], [index, index], color=colour, lw=2, alpha=0.45)
                fill = colour if row["inside"] else _STAND_IN["card"]
                ax.plot(length, index, "o", color=colour, ms=8, mfc=fill, clip_on=False)
                end: dict[str, Any] = {"xy": (length, index), "xytext": (9, 0), "textcoords": "offset points"}
                under = {"facecolor": _STAND_IN["card"], "edgecolor": "none", "pad": 1.5}
                ax.annotate(written(row[key]), **end, va="center", size=11.5, bbox=under)
            if gate is not None:
                ax.axvline(gate, color=_STAND_IN["ink"], lw=1, ls=(0, (3, 3)), zorder=0)
                ax.text(gate, -0.8, f" gate {gate:g}", va="center", size=11.5)
            ax.set_xlim(0, most * 1.5)
            ax.set_ylim(len(rows) - 0.5, -1)
            ax.set_yticks(range(len(rows)), names if ax is axes[0] or not wide else [""] * len(rows), size=12)
            ax.tick_params("y", pad=8)
            ax.set_title(title, loc="left", fontsize=13, weight="bold")
            ax.xaxis.set_major_locator(NullLocator())
            ax.spines.bottom.set_visible(False)
            ax.grid(False)
        return figure

    told = "; ".join(
        f"{row['name']} {numbers.size(row['bytes'])}, {numbers.duration(row['p50_ms'])}, KL {numbers.nats(row['kl'])}"
        for row in rows
    )
    return _drawn("candidates", f"Candidates by size, latency and KL to the fp32 student: {told}.", draw)


def latencies(facts: Mapping[str, Any], samples: Mapping[str, np.ndarray]) -> Markup:
    """Every model's timed queries on one logarithmic axis: quantiles as dots, the median as a bar."""
    models = facts["models"]

    def draw(wide: bool) -> Figure:
        figure, axes = _panels(760 if wide else 350, 54 * len(models) + 50)
        ax = axes[0]
        jitter = np.random.default_rng(0)
        for row, (model, figures) in enumerate(models.items()):
            colour = _colour(_OF_MODEL.get(model, model))
            shares = (np.arange(_POINTS) + 0.5) / _POINTS
            dots = np.quantile(samples[model], shares) if len(samples[model]) > _POINTS else samples[model]
            ax.plot(dots, row + jitter.uniform(-0.24, 0.24, len(dots)), "o", color=colour, ms=3.5, alpha=0.35, mew=0)
            ax.plot([figures["p50_ms"]] * 2, [row - 0.32, row + 0.32], color=colour, lw=3, solid_capstyle="round")
            more = f"p99 {numbers.duration(figures['p99_ms'])}"
            _row(ax, row, model, numbers.duration(figures["p50_ms"]), more, wide)
        ax.set_xscale("log")
        low = min(min(samples[model]) for model in models)
        high = max(max(samples[model]) for model in models)
        ax.set_xlim(low / 1.6, high * 1.6)
        ax.set_ylim(len(models) - 0.5, -0.5)
        decades = np.arange(np.ceil(np.log10(low / 1.6)), np.log10(high * 1.6))
        ax.xaxis.set_major_locator(FixedLocator(list(10 ** decades[:: -(-len(decades) // (7 if wide else 2))])))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{value / 1e3:g} s" if value >= 1e3 else f"{value:g} ms")
        )
        return figure

    told = ", ".join(f"{_named(model)} {numbers.duration(figures['p50_ms'])}" for model, figures in models.items())
    return _drawn("latencies", f"Latency of one query on a logarithmic axis; medians: {told}.", draw)


# ── drawing ──────────────────────────────────────────────────────────────────────────────────────


def _panels(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure whose units are CSS pixels, and its axes."""
    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def _row(ax: Axes, row: int, item: str, main: str, more: str, wide: bool) -> None:
    """The row's name left of the axes and its figures right of them, each with a second line where there is room."""
    name, what = NAMES.get(item, (item, "teacher, an arm of the recipe"))
    for x, align, first, second in ((-0.02, "right", name, what), (1.02, "left", main, more)):
        place: dict[str, Any] = {"transform": ax.get_yaxis_transform(), "ha": align, "va": "center"}
        ax.text(x, row - 0.19 * wide, first, weight="bold", **place)
        if wide:
            ax.text(x, row + 0.21, second, size=11, color=_STAND_IN["muted"], **place)
    ax.yaxis.set_major_locator(NullLocator())


def _colour(arm: str) -> str:
    return _STAND_IN.get(arm, _STAND_IN["muted"])


def _named(item: str) -> str:
    return NAMES.get(item, (item,))[0]


def _thinned(points: np.ndarray) -> np.ndarray:
    """At most _POINTS points [n, 2]: the means of as many equal stretches."""
    return np.array([stretch.mean(axis=0) for stretch in np.array_split(points, min(_POINTS, len(points)))])


def _drawn(name: str, label: str, draw: Callable[[bool], Figure]) -> Markup:
    """Both drawings of a chart, each an `svg` with ``label`` for those who do not see it."""
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
    """matplotlib's document as an element of the page: own ids, the page's colours and font, no global style."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', f'role="img" aria-label="{escape(label)}"', svg, count=1)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", svg)
    for name, stand_in in _STAND_IN.items():
        svg = svg.replace(stand_in, f"var(--{name})")
    return Markup(svg)
