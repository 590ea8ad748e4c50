"""Report the result of `bench --against`: as lines, as Markdown for a CI job's summary, and as JUnit XML."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from distillctl import console
from distillctl.commands.output import size
from distillctl.errors import GateFailed, UnavailableError
from distillctl.run_dir.workspace import writable, write_text
from distillctl.untrusted import regular_files
from distillctl.untrusted.markdown import plain

JUNIT_OUTCOME = {"failed": "failure", "undecided": "skipped"}


def emit(
    comparison: Mapping[str, Any], *, undecided_fails: bool, junit: Path | None = None, summary: Path | None = None
) -> None:
    """Write the result to stdout and to the files that were asked for.

    Raise GateFailed if the run is slower or larger than allowed, and with ``undecided_fails`` also if that is
    undecided.
    """
    if summary is None and (step := os.environ.get("GITHUB_STEP_SUMMARY")):
        summary = Path(step)
    try:
        if junit is not None:
            write_junit(junit, comparison, undecided_fails=undecided_fails)
        if summary is not None:
            append_summary(summary, comparison)
    except UnavailableError:
        console.readable(*readable(comparison))  # what took long to measure is not lost with a file
        raise
    failed = comparison["verdict"] == "failed" or (undecided_fails and comparison["verdict"] == "undecided")
    if not failed and comparison["verdict"] == "undecided":
        console.warn(reason(comparison))
    if failed:
        console.readable(*readable(comparison))
        raise GateFailed(reason(comparison), where=comparison["against"], facts=comparison)
    console.result(comparison, *readable(comparison))


def readable(comparison: Mapping[str, Any]) -> Iterator[str]:
    """Yield one line for each of the two checks, and the conditions of the measurement."""
    yield f"{comparison['run_dir']} against {comparison['against']}"
    for name in ("latency", "size"):
        yield f"{name:8} {comparison[name]['verdict']:10} {_measured(comparison, name)}"
    latency = comparison["latency"]
    yield (
        f"{latency['pairs']} pairs of fresh processes in {latency['seconds']:.0f} s, "
        f"{comparison['threads']} thread(s), {latency['queries']:,} queries each; measured: {latency['measured']}"
    )
    if recorded := comparison["recorded"]:
        times = f"{recorded['own_p50_ms']:.2f} ms against {recorded['other_p50_ms']:.2f} ms"
        unlike = recorded.get("unlike")
        yield f"recorded by bench: {times}" if unlike is None else f"recorded by bench, not comparable: {unlike}"


def reason(comparison: Mapping[str, Any]) -> str:
    """Return why the comparison failed, or what is undecided."""
    not_passed = [name for name in ("latency", "size") if comparison[name]["verdict"] != "passed"]
    return "; ".join(f"{name} {comparison[name]['verdict']}: {_measured(comparison, name)}" for name in not_passed)


def _measured(comparison: Mapping[str, Any], name: str) -> str:
    check = comparison[name]
    if name == "size":
        return (
            f"{size(check['bytes'])}, {check['growth']:+.1%} to {size(check['other_bytes'])} "
            f"(at most {check['max_growth']:+.1%})"
        )
    bounds = "no interval yet" if check["low"] is None else f"{check['low'] - 1:+.1%} … {check['high'] - 1:+.1%}"
    described = (
        f"p50 {check['own_p50_ms']:.2f} ms, {check['ratio'] - 1:+.1%} ({bounds}) to {check['other_p50_ms']:.2f} ms "
        f"(at most {check['max_slowdown']:+.1%})"
    )
    return f"{described}; {_more_pairs(check)}" if check["verdict"] == "undecided" else described


def _more_pairs(latency: Mapping[str, Any]) -> str:
    if latency["more_pairs"] is None:
        return "the difference is the bound itself: no number of samples would tell"
    each = latency["seconds"] / latency["pairs"]
    return f"about {latency['more_pairs']} more pairs would tell ({latency['more_pairs'] * each:.0f} s)"


def markdown(comparison: Mapping[str, Any]) -> str:
    """Return a section of a GitHub step summary."""
    mark = {"passed": "✅", "failed": "❌", "undecided": "⚠️"}
    lines = [f"### {mark[comparison['verdict']]} distillctl bench: {comparison['verdict']}", ""]
    lines += ["| check | verdict | measured |", "|---|---|---|"]
    lines += [
        f"| {name} | {comparison[name]['verdict']} | {plain(_measured(comparison, name))} |"
        for name in ("latency", "size")
    ]
    return "\n".join([*lines, "", *map(plain, list(readable(comparison))[3:]), plain(comparison["machine"]["cpu"]), ""])


def append_summary(path: Path, comparison: Mapping[str, object]) -> None:
    """Append to the file that collects all steps' summaries. Raise UnavailableError if it cannot be written."""
    with writable(path):
        regular_files.check_regular(path)  # a FIFO would be waited for
    with writable(path), path.open("a", encoding="utf-8") as file:
        file.write(markdown(comparison) + "\n")


def write_junit(path: Path, comparison: Mapping[str, Any], *, undecided_fails: bool) -> None:
    """Write a test suite of two cases. Undecided latency is skipped, or failed with ``undecided_fails``."""
    outcomes = {
        name: "failure"
        if undecided_fails and comparison[name]["verdict"] == "undecided"
        else JUNIT_OUTCOME.get(comparison[name]["verdict"])
        for name in ("latency", "size")
    }
    suite = ElementTree.Element("testsuite", name="distillctl bench", tests=str(len(outcomes)))
    suite.set("failures", str(list(outcomes.values()).count("failure")))
    suite.set("skipped", str(list(outcomes.values()).count("skipped")))
    suite.set("errors", "0")
    suite.set("time", f"{comparison['latency']['seconds']:.3f}")
    for name, outcome in outcomes.items():
        seconds = comparison["latency"]["seconds"] if name == "latency" else 0.0
        case = ElementTree.SubElement(suite, "testcase", classname="distillctl.bench", name=name, time=f"{seconds:.3f}")
        if outcome:
            ElementTree.SubElement(case, outcome, message=_measured(comparison, name))
        ElementTree.SubElement(case, "system-out").text = _measured(comparison, name)
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    write_text(path, ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n")
