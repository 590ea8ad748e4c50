"""Format what commands print on stdout apart from a stage's findings (`findings`): states, plans, diagnoses, JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from textwrap import indent
from typing import Any

from rich.text import Text

from distillctl.data.rows import left_out
from distillctl.pipeline import StageResult, State
from distillctl.run_dir.workspace import Workspace
from distillctl.terminal.text_table import TextTable

Line = str | Text | TextTable
"""The lines of one result: a single line, or a table."""
COLOURS = {"fresh": "green", "stale": "yellow", "missing": "dim", "damaged": "red"}


def as_json(result: StageResult) -> dict[str, Any]:
    """Return the stage, whether it was fresh, and all its facts."""
    return {"stage": result.stage, "fresh": result.reused, "seconds": round(result.seconds, 2), **result.manifest.facts}


def brief(result: StageResult) -> dict[str, Any]:
    """Return the --json facts of a stage that `run` passed."""
    return {"fresh": result.reused, "seconds": round(result.seconds, 2), "fingerprint": result.manifest.fingerprint}


def line(result: StageResult) -> str:
    """Return one line about a finished stage."""
    if result.reused:
        return f"{result.stage}: fresh"
    return f"{result.stage}: done in {result.seconds:.1f} s"


def report_path(workspace: Workspace) -> str:
    """Return the line that says where the report is."""
    return f"report: {workspace.folder('report') / 'report.html'}"


def size(count: float | None) -> str:
    """Return a number of bytes with a decimal unit, as file managers and app stores show it."""
    if count is None:
        return "-"
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


def verified(facts: Mapping[str, Any]) -> Iterator[Line]:
    """Yield the result of `bundle verify` for an unchanged bundle."""
    yield f"{facts['name']}: {facts['files']} files, {size(facts['bytes'])}, all as they were made"
    for name, verdict in facts["graphs"].items():
        yield f"{name}: {verdict}"


def states(states: Sequence[State]) -> Iterator[Line]:
    """Yield `status`, readable: a table of the stages, and what to type for those that are not fresh."""
    table = TextTable(("stage", "state", "why"), text=(0, 1, 2))
    for state in states:
        table.add_row(state.stage, Text(state.state, COLOURS[state.state]), "; ".join(state.why))
    yield table
    yield from (f"To repair {state.stage}: {state.next}" for state in states if state.next)


def plan(facts: Mapping[str, Any]) -> Iterator[Line]:
    """Yield the plan of a dry run as readable lines."""
    for stage in facts["stages"]:
        yield f"{stage['stage']}: {stage['state']}" + (f" ({'; '.join(stage['why'])})" if stage["why"] else "")
    yield from _reach(facts["reach"])
    rows = facts["rows"]
    yield f"rows: {rows['train']} train, {rows['eval']} eval, {rows['shots']} few-shot; {left_out(rows)}"
    table = TextTable(("arm", "rows", "tokens a row", "shared"))
    for name, arm in facts["arms"].items():
        table.add_row(name, f"{arm['rows']:,}", f"{arm['tokens_per_row']:,}", f"{arm['shared_tokens']:,}")
    yield table
    yield f"tokens are {facts['tokens']}"
    yield from _lengths(facts["lengths"])
    for name, view in facts["views"].items():
        yield f"the {name} view of the first eval row:\n{indent(view, '    ')}"
    collect, train = facts["collect"], facts["train"]
    kept = f"{size(collect['soft_label_bytes'])} of soft labels"
    if served := collect.get("served"):
        cost = "" if served["cost"] is None else f", cost {served['cost']:.4g}"
        yield (
            f"collect: at least {served['requests']:,} requests, {served['tokens_read']:,} tokens read and at most "
            f"{served['tokens_written']:,} written{cost}; {kept}"
        )
    else:
        yield (
            f"collect: {collect['forward_tokens']:,} tokens through the teacher ({_flop(collect['flop'])}), {kept}, "
            f"by {_engine(collect['engine'])}"
        )
    yield (
        f"train: about {train['steps']:,} steps, {train['tokens']:,} tokens ({_flop(train['flop'])}), "
        f"checkpoints of {size(train['checkpoint_bytes'])}"
    )


def _reach(reach: Mapping[str, Any]) -> Iterator[str]:
    """Yield what the recipe reads outside its folder, what it sends and what code it runs, if anything."""
    if reach["reads"]:
        listed = ", ".join(f"{path} ({key})" for key, path in reach["reads"].items())
        yield f"reads outside the recipe's folder: {listed}"
    if sends := reach["sends"]:
        key = f"with the key in {sends['key']}" if sends["key"] else "without a key"
        wants = (
            f"; collect needs your approval: --trust {sends['wants_approval'].replace(', ', ' --trust ')}"
            if sends["wants_approval"]
            else ""
        )
        yield f"sends its rows to {sends['host']}, {key}{wants}"
    if reach["runs_code"]:
        listed = ", ".join(f"{whose} ({key})" for key, whose in reach["runs_code"].items())
        yield f"runs {listed}: needs --trust-remote-code"


def _lengths(lengths: Mapping[str, Any]) -> Iterator[Line]:
    """Yield the longest rows, the limits of teacher and student, and what happens to rows that are too long."""
    for name in ("teacher", "student"):
        side = lengths[name]
        estimated = "" if side["counted"] else "its tokens are estimated from characters"
        yield "; ".join(filter(None, (side["told"] or f"the {name}'s limit is not known", side["note"], estimated)))
    names = sorted({name for row in lengths["longest"] for name in row["tokens"]} - {"student"})
    table = TextTable(("longest rows", "split", *(f"{name} tokens" for name in (*names, "student"))), text=(0, 1))
    for row in lengths["longest"]:
        tokens = [f"{row['tokens'][name]:,}" if name in row["tokens"] else "" for name in (*names, "student")]
        table.add_row(row["id"], row["split"], *tokens)
    yield table
    too_long, checked = lengths["too_long"], lengths["checked"]
    described = (
        f"{lengths['rows']:,} rows"
        if checked == lengths["rows"]
        else f"the {checked:,} longest of {lengths['rows']:,} rows"
    )
    yield (
        f"too long, of {described}: {too_long['teacher']:,} for the teacher, {too_long['student']:,} for the student; "
        f"{lengths['then']}"
    )


def _engine(asked: Mapping[str, object]) -> str:
    if asked["engine"] == "local":
        return "one teacher in this process"
    where = f"the Ray cluster at {asked['address']}" if asked["address"] else "Ray on this machine"
    each = " and ".join(f"{asked[kind]:g} {kind.upper()[:-1]}s" for kind in ("cpus", "gpus") if asked[kind])
    return f"{asked['workers']} workers with {each} each, {where}"


def _flop(count: float | None) -> str:
    return "work unknown until the model is here" if count is None else f"{count / 1e12:,.1f} TFLOP"


def diagnosis(findings: Mapping[str, Any]) -> Iterator[Line]:
    """Yield `doctor`, readable."""
    yield "  ".join(f"{name} {version}" for name, version in findings["versions"].items())
    host = findings["machine"]
    yield f"{host['cpu']}, {host['usable_cores']} cores, {size(host['memory_bytes'])}: {' '.join(host['flags'])}"
    yield f"int8: {findings['int8']}"
    writable = "writable" if findings["writable"] else "NOT writable"
    yield f"disk: {size(findings['disk_free_bytes'])} free here, {writable}"
    yield from _missing(findings["missing"])


def _missing(lines: Iterable[str]) -> Iterator[str]:
    problems = [f"missing: {line}" for line in lines]
    yield from problems or ["nothing is missing"]
