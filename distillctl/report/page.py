"""The report as one self-contained HTML page: no script, no network, every text escaped."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from distillctl.report import charts, numbers
from distillctl.report.contract import Series


def render(facts: dict[str, Any], series: Series) -> str:
    """The page of a contract (`contract.build`) and the series behind its charts."""
    return (
        _environment()
        .get_template("page.html.jinja")
        .render(
            facts,
            context=series.context,
            charts={
                "arms": charts.arms(facts),
                "training": charts.training(series.training),
                "candidates": charts.candidates(facts),
                "latencies": charts.latencies(facts, series.latencies),
            },
            names=charts.NAMES,
            folder=str(Path(facts["artifact"]).parent),
        )
    )


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("distillctl.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=numbers.percent,
        interval=numbers.interval,
        points=numbers.points,
        size=numbers.size,
        duration=numbers.duration,
        times=numbers.times,
        count=numbers.count,
        nats=numbers.nats,
        moment=_moment,
        python=repr,
        quoted=_quoted,
    )
    return environment


def _quoted(text: str) -> str:
    """A string literal as Kotlin and Swift read it."""
    return json.dumps(text, ensure_ascii=False)


def _moment(created: float) -> str:
    return datetime.fromtimestamp(created, UTC).strftime("%Y-%m-%d %H:%M UTC")
