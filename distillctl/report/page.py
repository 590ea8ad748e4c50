"""Render the report as one self-contained HTML page: no scripts, no network, all text escaped."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from distillctl.data.rows import left_out
from distillctl.metrics import names
from distillctl.report import charts, formatting, speed, use
from distillctl.report.contract import Series
from distillctl.report.facts import ReportFacts
from distillctl.report.svg import COLOUR, NAMES
from distillctl.tasks.generate.facts import GenerateReport, PointingResponse, ShownAnswers
from distillctl.untrusted.printable import printable

SPEAKERS = {
    "ceiling": "Teacher, prompted",
    "floor": "Teacher, no prompt",
    "student": "Student",
    "deployed": "Deployed",
    "reference": "Reference",
}
"""Source of an answer → its name on the page."""


def render(facts: ReportFacts, series: Series) -> str:
    """Render the page from a contract (`contract.build`) and the series for its charts."""
    return (
        _environment()
        .get_template(f"{facts.task}.html.jinja")
        .render(
            facts.given,
            context=series.context,
            content_measured=names.measures_content(facts.metric),
            charts=_charts(facts, series),
            names=NAMES,
            coloured=COLOUR,
            speakers=SPEAKERS,
            folder=str(Path(facts.artifact or ".").parent),
            code=use.code(facts, series.run_dir),
        )
    )


def _charts(facts: ReportFacts, series: Series) -> dict[str, Markup]:
    drawings = {
        "arms": charts.arms(facts),
        "training": charts.training(series.training),
        "candidates": charts.candidates(facts),
        "front": charts.front(facts),
    }
    if facts.models:
        drawings["latencies"] = charts.latencies(facts.models, series.latencies)
    if facts.task == "generate":
        if facts.models:
            drawings["speeds"] = charts.speeds(facts.models)
        if need := facts.part(GenerateReport).necessity:
            drawings["context_need"] = charts.context_need(need)
    return drawings


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("distillctl.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=formatting.percent,
        interval=formatting.interval,
        points=formatting.points,
        size=formatting.size,
        duration=formatting.duration,
        times=formatting.times,
        running=speed.running,
        count=formatting.count,
        nats=formatting.nats,
        metric=names.named,
        moment=_moment,
        initial=_initial,
        voices=_voices,
        pieces=_pieces,
        left_out=lambda counts: left_out(counts.model_dump()),
    )
    return environment


def _visible(value: Any) -> Any:
    """Write out invisible characters of text, such as a bidi override; HTML stays as it is."""
    return printable(value, keep="\n\t") if isinstance(value, str) and not isinstance(value, Markup) else value


def _initial(text: str) -> str:
    """Return the text as a heading: its first letter large, unless it begins with a name such as chrF."""
    return text if text.split()[0] != text.split()[0].lower() else text[:1].upper() + text[1:]


def _voices(row: ShownAnswers) -> list[dict[str, object]]:
    """Return the different answers to an input, each with all its sources; `cut`: true if one of them cut it off."""
    sources: dict[str, list[str]] = {}
    for name, text in {**row.said, "reference": row.reference}.items():
        if text is not None:
            sources.setdefault(text, []).append(name)
    return [{"text": text, "names": names, "cut": bool({*names} & {*row.cut})} for text, names in sources.items()]


def _pieces(row: PointingResponse) -> Iterator[tuple[str, str | None]]:
    """Yield a text in pieces, each with the reason of its span; where spans overlap, the earlier one goes first."""
    at = 0
    for span in row.spans:
        start = max(at, span.start)
        if start < span.end:
            yield row.text[at:start], None
            yield row.text[start : span.end], span.why
            at = span.end
    yield row.text[at:], None


def _moment(created: float) -> str:
    return datetime.fromtimestamp(created, UTC).strftime("%Y-%m-%d %H:%M UTC")
