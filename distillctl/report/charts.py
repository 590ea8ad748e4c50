"""Draw the report's charts. `svg` embeds them in the page."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from distillctl.metrics import names
from distillctl.report import formatting
from distillctl.report.facts import ReportFacts
from distillctl.report.svg import COLOUR, colour, drawn, name_row, named, panels, stems, title
from distillctl.run_dir.bench_facts import TimedModel
from distillctl.run_dir.facts import Candidate
from distillctl.tasks.generate.facts import NeedRange, NeedSpread, NeedStretch

_POINTS = 120  # drawn per curve or model: enough to see a shape, whatever was recorded
_LEAST_KL = 1e-6  # less is the rounding of float32, and has no place on a logarithmic axis


def arms(facts: ReportFacts) -> Markup:
    """Draw every arm's score with its interval, over the band between floor and ceiling."""
    scores = facts.arms
    floor, ceiling = (scores[arm].score for arm in ("floor", "ceiling"))

    def draw(wide: bool) -> Figure:
        figure, axes = panels(760 if wide else 350, 46 * len(scores) + 70)
        ax = axes[0]
        ax.axvspan(floor, ceiling, color=COLOUR["band"], lw=0)
        ax.text((floor + ceiling) / 2, -0.72, "what the context adds", ha="center", va="center", size=11.5)
        for row, (arm, score) in enumerate(scores.items()):
            ink = colour(arm)
            ax.plot([score.low, score.high], [row, row], color=ink, lw=7, alpha=0.35, solid_capstyle="round")
            ax.plot(score.score, row, "o", color=ink, ms=10)
            constructed = arm == "ceiling" and facts.ceiling_by_construction
            more = "by construction" if constructed else formatting.interval(score)
            name_row(ax, row, arm, formatting.percent(score.score), more, wide)
        ax.set_ylim(len(scores) - 0.5, -1)
        ax.xaxis.set_major_locator(MaxNLocator(6 if wide else 4))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
        return figure

    listed = ", ".join(f"{named(arm)} {formatting.percent(score.score)}" for arm, score in scores.items())
    measure = names.named(facts.metric)
    return drawn("arms", f"{measure[0].upper()}{measure[1:]} of each arm with its 95 % interval: {listed}.", draw)


def training(lines: Sequence[Mapping[str, Any]]) -> Markup:
    """Draw loss per step and, on validation rows, KL or else cross-entropy, for student and control."""
    keys = {key for line in lines for key in line}
    held_out, criterion = ("kl", "KL") if "kl" in keys else ("nll", "cross-entropy")

    def draw(wide: bool) -> Figure:
        figure, axes = panels(760, 260, columns=2) if wide else panels(350, 460, rows=2)
        head = ("Training loss", f"{criterion[0].upper()}{criterion[1:]} on validation rows, nats")
        for ax, key, text in zip(axes, ("loss", held_out), head, strict=True):
            for run in ("control", "student"):
                points = [
                    (line["step"], line[key]) for line in lines if line["run"] == run and line.get(key) is not None
                ]
                if points:
                    steps, values = _thinned(np.array(points)).T
                    style = "-" if key == "loss" else "-o"
                    ax.plot(steps, values, style, color=colour(run), lw=2, ms=4, label=run)
            title(ax, text)
            ax.set_xlabel("step")
            top = ax.dataLim.y1  # −inf where nothing is drawn
            ax.set_ylim(0, 1.08 * top if top > 0 else 1)
            ax.yaxis.set_major_locator(MaxNLocator(5))
            ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        if len(axes[0].lines) > 1:
            axes[0].legend(*map(reversed, axes[0].get_legend_handles_labels()), labelcolor=COLOUR["ink"])
        return figure

    figures = [line[held_out] for line in lines if line["run"] == "student" and line.get(held_out) is not None]
    sentence = (
        f" The student's {criterion} goes from {figures[0]:.3f} to a best of {min(figures):.3f} nats."
        if figures
        else ""
    )
    return drawn("training", f"Training loss and {criterion} on the validation rows by step.{sentence}", draw)


def candidates(facts: ReportFacts) -> Markup:
    """Draw size, latency and distance from the fp32 student, a row per candidate; those outside the gate are hollow."""
    fp32 = Candidate(name="fp32", kl=0.0, kl_percentiles=[], kl_teacher=None, same_top=1.0, **facts.fp32.given)
    rows = [fp32, *facts.candidates]
    figures = (
        ("bytes", "Size", formatting.size),
        ("p50_ms", "Latency, p50", formatting.duration),
        ("kl", "KL to fp32, nats", formatting.nats),
    )
    names = [textwrap.fill(row.name.replace("_", " "), 22) for row in rows]
    inks = [COLOUR["deployed" if row.chosen else "student" if row is fp32 else "muted"] for row in rows]

    def draw(wide: bool) -> Figure:
        height = 42 * len(rows) + 60
        figure, axes = panels(760, height, columns=3) if wide else panels(350, 3 * height, rows=3)
        for ax, (key, text, written) in zip(axes, figures, strict=True):
            gate = facts.gate.max_kl if key == "kl" else None
            lengths = [getattr(row, key) or 0.0 for row in rows]  # a KL that is not finite is null
            drawn_rows = [
                (length, written(getattr(row, key)), ink, row.inside)
                for row, length, ink in zip(rows, lengths, inks, strict=True)
            ]
            stems(ax, drawn_rows, max(*lengths, gate or 0.0))
            if gate is not None:
                ax.axvline(gate, color=COLOUR["ink"], lw=1, ls=(0, (3, 3)), zorder=0)
                ax.text(gate, -0.8, f" gate {gate:g}", va="center", size=11.5)
            ax.set_yticks(range(len(rows)), names if ax is axes[0] or not wide else [""] * len(rows), size=12)
            title(ax, text)
        return figure

    listed = "; ".join(
        f"{row.name} {formatting.size(row.bytes)}, {formatting.duration(row.p50_ms)}, KL {formatting.nats(row.kl)}"
        for row in rows
    )
    return drawn("candidates", f"Candidates by size, latency and KL to the fp32 student: {listed}.", draw)


def front(facts: ReportFacts) -> Markup:
    """Draw size against KL, a dot per candidate, with a line through the best ones for their size."""
    rows = [row for row in facts.candidates if row.kl is not None]  # one that is not finite is null
    kl = [max(row.kl or 0.0, _LEAST_KL) for row in rows]
    gate = facts.gate.max_kl
    order = sorted(range(len(rows)), key=lambda index: (rows[index].bytes, kl[index]))
    steps = [index for place, index in enumerate(order) if all(kl[index] < kl[other] for other in order[:place])]

    def draw(wide: bool) -> Figure:
        figure, axes = panels(760 if wide else 350, 300)
        ax = axes[0]
        if gate is not None:
            ax.axhline(gate, color=COLOUR["ink"], lw=1, ls=(0, (3, 3)))
            written = ax.get_yaxis_transform()
            ax.text(0.99, gate, f"gate {gate:g}", transform=written, ha="right", va="bottom", size=11.5)
        ax.plot([rows[at].bytes / 1e6 for at in steps], [kl[at] for at in steps], color=COLOUR["muted"], lw=1.5)
        for row, value in zip(rows, kl, strict=True):
            ink = COLOUR["deployed" if row.chosen else "muted"]
            face = ink if row.inside else COLOUR["card"]
            ax.plot(row.bytes / 1e6, value, "o", color=ink, mfc=face, ms=12 if row.chosen else 8)
            if row.chosen:
                place: dict[str, Any] = {"xytext": (0, 13), "textcoords": "offset points", "ha": "center"}
                ax.annotate("chosen", (row.bytes / 1e6, value), **place, weight="bold", color=ink)
        ax.set_yscale("log")
        ax.set_ylim(min(kl) / 2, max(*kl, gate or 0.0) * 2.5)
        ax.margins(x=0.12)
        ax.xaxis.set_major_locator(MaxNLocator(8 if wide else 4))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.set_xlabel("MB")
        title(ax, "KL to fp32, nats, by size")
        return figure

    listed = "; ".join(
        f"{rows[at].name} {formatting.size(rows[at].bytes)}, KL {formatting.nats(kl[at])}" for at in steps
    )
    return drawn("front", f"Candidates by size and KL to the fp32 student. Nearest for their size: {listed}.", draw)


def latencies(models: Mapping[str, TimedModel], samples: Mapping[str, np.ndarray]) -> Markup:
    """Draw every model's latencies on one logarithmic axis: quantiles as dots, the median as a bar."""

    def draw(wide: bool) -> Figure:
        figure, axes = panels(760 if wide else 350, 54 * len(models) + 50)
        ax = axes[0]
        jitter = np.random.default_rng(0)
        for row, (model, figures) in enumerate(models.items()):
            ink = colour(model)
            shares = (np.arange(_POINTS) + 0.5) / _POINTS
            dots = np.quantile(samples[model], shares) if len(samples[model]) > _POINTS else samples[model]
            ax.plot(dots, row + jitter.uniform(-0.24, 0.24, len(dots)), "o", color=ink, ms=3.5, alpha=0.35, mew=0)
            ax.plot([figures.p50_ms] * 2, [row - 0.32, row + 0.32], color=ink, lw=3, solid_capstyle="round")
            more = f"p99 {formatting.duration(figures.p99_ms)}"
            name_row(ax, row, model, formatting.duration(figures.p50_ms), more, wide)
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

    listed = ", ".join(f"{named(model)} {formatting.duration(figures.p50_ms)}" for model, figures in models.items())
    return drawn("latencies", f"Latency of one query on a logarithmic axis; medians: {listed}.", draw)


def speeds(models: Mapping[str, TimedModel]) -> Markup:
    """Draw the latency of the first token and the speed of the others, one row per model."""
    figures = (
        ("first_token_ms", "Time to the first token, p50", formatting.duration),
        ("decode_tokens_per_second", "Tokens per second after it", formatting.count),
    )

    def draw(wide: bool) -> Figure:
        height = 40 * len(models) + 50
        figure, axes = panels(760, height, columns=2) if wide else panels(350, 2 * height, rows=2)
        for ax, (key, text, written) in zip(axes, figures, strict=True):
            # A model whose answers are one token long has no speed of the others.
            values = {name: getattr(timed, key) for name, timed in models.items()}
            rows = [(value or 0.0, written(value), colour(name), True) for name, value in values.items()]
            stems(ax, rows, max(length for length, *_ in rows))
            shown = ax is axes[0] or not wide
            ax.set_yticks(range(len(models)), [named(name) if shown else "" for name in models], size=12.5)
            title(ax, text)
        return figure

    listed = ", ".join(
        f"{named(name)} {formatting.duration(timed.first_token_ms)}, then "
        f"{formatting.count(timed.decode_tokens_per_second)} tokens per second"
        for name, timed in models.items()
    )
    return drawn("speeds", f"Time to the first token and speed of the others: {listed}.", draw)


def context_need(spread: NeedSpread) -> Markup:
    """Draw where the context's effect lies: by how much a token needs it, and by its position in the response."""
    bins, positions = spread.bins, spread.positions

    def draw(wide: bool) -> Figure:
        tall = 62 * len(bins) + 60
        figure, axes = panels(760, tall, columns=2) if wide else panels(350, 2 * tall, rows=2)
        title(axes[0], "Share of the tokens, and of all nats")
        rows = [
            (getattr(group, key), formatting.percent(getattr(group, key), 0), COLOUR[ink], True)
            for group in bins
            for key, ink in (("tokens", "floor"), ("nats", "ceiling"))
        ]
        stems(axes[0], rows, max(length for length, *_ in rows))
        axes[0].set_yticks(
            [2 * index + 0.5 for index in range(len(bins))], [_range(group) for group in bins], size=12.5
        )
        for height, (text, ink) in zip((0.11, 0.03), (("tokens", "floor"), ("nats", "ceiling")), strict=True):
            key: dict[str, Any] = {"color": COLOUR[ink], "transform": axes[0].transAxes}
            axes[0].text(0.98, height, f"● {text}", ha="right", **key)
        title(axes[1], "Mean KL by position, nats")
        rows = [(group.mean, formatting.nats(group.mean), COLOUR["ceiling"], True) for group in positions]
        stems(axes[1], rows, max(group.mean for group in positions))
        axes[1].set_yticks(range(len(positions)), [_stretch(group) for group in positions], size=12.5)
        return figure

    listed = ", ".join(
        f"{_range(group)}: {formatting.percent(group.tokens, 0)} of the tokens, "
        f"{formatting.percent(group.nats, 0)} of all KL"
        for group in bins
    )
    return drawn("context-need", f"How much the response tokens need the context. {listed}.", draw)


def _range(group: NeedRange) -> str:
    if group.high is None:
        return f"over {group.low:g} nats"
    return f"under {group.high:g}" if group.low == 0 else f"{group.low:g} to {group.high:g}"


def _stretch(group: NeedStretch) -> str:
    first, last = group.first, group.last
    return f"token {first}" if first == last else f"{first}–{last}"


def _thinned(points: np.ndarray) -> np.ndarray:
    """Return at most _POINTS points [n, 2]: the means of as many equal stretches."""
    return np.array([stretch.mean(axis=0) for stretch in np.array_split(points, min(_POINTS, len(points)))])
