"""The report against a small committed run: the contract's shape, its numbers, and the page."""

from __future__ import annotations

import ast
import html
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from distillctl.report import charts, contract, markdown, numbers, page
from distillctl.runtimes.onnxruntime import OnnxClassifier
from distillctl.stages import report
from distillctl.workspace import Workspace
from tests.browser import EXECUTABLE, browser
from tests.report_run import CONTEXT, HOSTILE, LABELS, ROWS, alter, committed, recipe


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Read only; a test that alters a manifest makes its own."""
    return committed(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def facts(workspace: Workspace) -> dict[str, Any]:
    return contract.build(recipe(), workspace)


@pytest.fixture(scope="module")
def text(workspace: Workspace, facts: dict[str, Any]) -> str:
    return page.render(facts, contract.series(workspace))


# ── the contract ─────────────────────────────────────────────────────────────────────────────────


def test_the_contract_has_the_shape_that_ci_jobs_read(facts: dict[str, Any], workspace: Workspace) -> None:
    assert list(facts["arms"]) == ["ceiling", "deployed", "student", "control", "cue_only", "floor"]
    for arm in facts["arms"].values():
        assert set(arm) == {"score", "low", "high", "n", "metric"}
        assert arm["low"] <= arm["score"] <= arm["high"]
    assert facts["recovered"].keys() >= {"student", "deployed"}
    for figure in facts["recovered"].values():
        assert set(figure) == {"value", "low", "high"}
    assert set(facts["models"]) == {"teacher", "teacher_cached", "fp32", "deployed"}
    for model in facts["models"].values():
        assert model.keys() >= {"p50_ms", "p90_ms", "p99_ms", "bytes", "peak_rss_bytes", "load_ms"}
    assert facts["context_tokens"] == {"teacher": 1151, "student": 13}
    assert facts["artifact"] == "quantize/model.onnx"
    assert (workspace.root / facts["artifact"]).is_file()
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts


def test_recovered_is_the_ratio_of_the_arms(facts: dict[str, Any]) -> None:
    score = {arm: figure["score"] for arm, figure in facts["arms"].items()}
    for arm in ("student", "deployed", "control"):
        share = (score[arm] - score["floor"]) / (score["ceiling"] - score["floor"])
        assert facts["recovered"][arm]["value"] == pytest.approx(share)
        assert facts["gaps"][arm]["value"] == pytest.approx(score["ceiling"] - score[arm])
    assert facts["soft_labels_bought"]["value"] == pytest.approx(score["student"] - score["control"])


def test_disagreements_come_furthest_first_and_are_counted(facts: dict[str, Any]) -> None:
    rows, verdicts = facts["disagreements"], facts["verdicts"]
    distances = [row["distance"] for row in rows]
    assert len(rows) == recipe().report.disagreements
    assert distances == sorted(distances, reverse=True)
    assert all(row["teacher"]["label"] in LABELS and row["reference"] in LABELS for row in rows)
    lead = verdicts["only_teacher_right"] - verdicts["only_deployed_right"]
    assert lead / ROWS == pytest.approx(facts["gaps"]["deployed"]["value"])
    assert verdicts["only_teacher_right"] + verdicts["only_deployed_right"] <= verdicts["different"] <= ROWS


def test_without_references_the_score_is_agreement_with_the_ceiling(tmp_path: Path) -> None:
    workspace = committed(tmp_path, references=False)
    facts = contract.build(recipe(), workspace)
    assert facts["metric"] == "agreement"
    assert facts["arms"]["ceiling"]["score"] == facts["arms"]["ceiling"]["low"] == 1
    assert facts["arms"]["deployed"]["score"] == pytest.approx(1 - facts["verdicts"]["different"] / ROWS)
    text = page.render(facts, contract.series(workspace))
    assert "agreement with the teacher" in text
    assert "Reference</th>" not in text


def test_a_context_that_does_nothing_is_called_so(tmp_path: Path) -> None:
    workspace = committed(tmp_path, gap=0.0, control=False)
    facts = contract.build(recipe(), workspace)
    assert facts["recovered"] == {"deployed": None, "student": None}
    assert "control" not in facts["arms"]
    text = page.render(facts, contract.series(workspace))
    assert "cannot be told apart" in text
    assert "no difference that could be measured" in facts["headline"]
    assert "no difference that could be measured" in markdown.render(facts)


@pytest.mark.parametrize(
    ("objective", "why"),
    [
        ("smallest", "sizes within 1 % count as equal"),
        ("fastest", "latencies within 10 % count as equal"),
        ("closest", "the lowest KL from fp32"),
    ],
)
def test_the_page_says_why_this_candidate(workspace, objective, why):
    quantize = {"objective": objective, "gate": {"max_bytes": 30_000_000}}
    facts = contract.build(recipe(quantize=quantize), workspace)
    text = page.render(facts, contract.series(workspace))
    assert f"The {objective} candidate inside the gate was taken ({why}" in text
    assert f"at most {numbers.size(30_000_000)}, at most 0.05 nats" in text
    assert text.count(", on the front</td>") == 3


# ── every number traces to a manifest ────────────────────────────────────────────────────────────


ALTERED: list[tuple[str, str, Any, str]] = [
    ("collect", "arms.ceiling.score", 0.8765, numbers.percent(0.8765)),
    ("collect", "gaps.floor.value", 0.4321, "43.2 ("),
    ("collect", "context_tokens.teacher", 4567, "4,567"),
    ("collect", "shared_tokens", 4321, "Read the 4,321 tokens"),
    ("collect", "context_text", "Another context.", "Another context."),
    ("train", "kl", 0.1357, "0.1357 nats"),
    ("train", "control.agreement", 0.8642, numbers.percent(0.8642)),
    ("export", "max_logit_difference", 7.3e-5, "7.3e-05"),
    ("quantize", "candidates.2.kl", 0.0345, "0.0345"),
    ("quantize", "fp32.bytes", 91_234_567, numbers.size(91_234_567)),
    ("bench", "models.deployed.p50_ms", 9.87, numbers.duration(9.87)),
    ("bench", "models.teacher.p99_ms", 7654.3, numbers.duration(7654.3)),
    ("bench", "models.fp32.peak_rss_bytes", 123_400_000, numbers.size(123_400_000)),
    ("bench", "ratios.teacher", 2345.0, "2,300×"),
    ("bench", "machine.cores", 7177, "7177"),
]
"""Stage, fact, another value, and how the report writes it."""


@pytest.fixture(scope="module")
def altered(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page after every one of the alterations, each of a number of its own."""
    workspace = committed(tmp_path_factory.mktemp("altered"))
    for stage, fact, value, _ in ALTERED:
        alter(workspace, stage, fact, value)
    return page.render(contract.build(recipe(), workspace), contract.series(workspace))


@pytest.mark.parametrize(("stage", "fact", "value", "shown"), ALTERED)
def test_altering_one_number_in_a_manifest_alters_the_report(
    text: str, altered: str, stage: str, fact: str, value: Any, shown: str
) -> None:
    assert shown not in _words(text)
    assert shown in _words(altered)


def _words(text: str) -> str:
    """What stands between the tags."""
    return re.sub(r"<[^>]*>", "\n", text)


def test_altering_a_prediction_alters_the_report(tmp_path: Path, facts: dict[str, Any]) -> None:
    workspace = committed(tmp_path)
    student, deployed = (workspace.folder(stage) / "eval.parquet" for stage in ("train", "quantize"))
    table = pq.read_table(student).select(["id", "control"]).rename_columns(["id", "deployed"])
    pq.write_table(table.take(list(range(ROWS - 1, -1, -1))), deployed)  # the order of rows is no matter
    changed = contract.build(recipe(), workspace)
    assert changed["arms"]["deployed"] == facts["arms"]["control"]
    assert changed["recovered"]["deployed"] == facts["recovered"]["control"]


# ── the page ─────────────────────────────────────────────────────────────────────────────────────


def test_the_stage_writes_the_page_and_hands_back_the_contract(tmp_path: Path) -> None:
    workspace = committed(tmp_path)
    outcome = report.run(recipe(), workspace)
    assert outcome.outputs == ["report.html"]
    assert outcome.facts == contract.build(recipe(), workspace)
    assert sorted(path.name for path in workspace.folder("report").iterdir()) == ["report.html"]


def test_the_page_is_the_same_each_time(workspace: Workspace, facts: dict[str, Any], text: str) -> None:
    assert page.render(facts, contract.series(workspace)) == text


def test_the_page_asks_for_nothing_and_runs_nothing(text: str) -> None:
    assert "default-src 'none'" in text
    assert not re.search(r"<script|<iframe|<object|<img|@import|\bsrc=|\bon\w+=\"", text)
    assert {target[:1] for target in re.findall(r'href="([^"]*)"', text)} == {"#", "d"}
    assert set(re.findall(r"url\((.)", text)) <= {"#"}


def test_every_text_of_the_user_is_escaped(tmp_path: Path) -> None:
    workspace = committed(tmp_path)
    labels = {"report": {"title": HOSTILE, "disagreements": ROWS}}
    text = page.render(contract.build(recipe(**labels), workspace), contract.series(workspace))
    assert HOSTILE not in text
    assert "<b>Who</b>" not in text
    assert html.escape(CONTEXT, quote=False).splitlines()[1] in text
    assert text.count("&lt;script&gt;alert") >= 4  # title, headline's eyebrow, table, sample


def test_ids_are_unique_and_every_chart_is_told_in_words(text: str) -> None:
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    references = re.findall(r'(?:xlink:href="#|url\(#|aria-labelledby=")([^")]+)', text)
    assert set(references) <= set(ids)
    told = re.findall(r'<svg[^>]*role="img" aria-label="([^"]{40,})"', text)
    assert len(told) == text.count("<svg") == 10
    assert "#0101" not in text


def test_text_is_readable_in_light_and_dark(text: str) -> None:
    light, dark = (dict(re.findall(r"--([\w-]+): (#\w{6});", part)) for part in text.split("@media (prefers-color")[:2])
    for colours in (light, dark):
        for ink, ground in (
            *((ink, ground) for ink in ("ink", "muted") for ground in ("page", "card", "code")),
            *(("ink", "good"), ("ink", "band"), ("deployed", "card"), ("warn-ink", "warn")),
        ):
            assert _contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)


def _contrast(a: str, b: str) -> float:
    """WCAG 2.2 contrast ratio of two #rrggbb colours."""
    bright, dim = sorted((_luminance(a), _luminance(b)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def test_a_candidate_whose_kl_is_not_finite_is_shown_without_one(tmp_path: Path) -> None:
    workspace = committed(tmp_path)
    alter(workspace, "quantize", "candidates.0.kl", None)
    facts = contract.build(recipe(), workspace)
    assert f"dynamic_int8 22.9\u00a0MB, 3.05\u00a0ms, KL {numbers.UNKNOWN};" in charts.candidates(facts)


def test_the_python_example_runs_with_the_files_beside_the_graph(workspace: Workspace, text: str) -> None:
    found = re.search(r'<code id="use-python">(.*?)</code>', text, re.DOTALL)
    assert found
    code = html.unescape(found[1])
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=workspace.root
    ).stdout
    logits = OnnxClassifier(workspace.folder("quantize")).logits([HOSTILE])[0]
    weights = np.exp(logits - logits.max())
    assert ast.literal_eval(printed) == pytest.approx(dict(zip(LABELS, weights / weights.sum(), strict=True)))


def test_the_app_examples_feed_every_input_of_the_graph(text: str) -> None:
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        assert f'"{name}" to tensor(' in text
        assert f'"{name}": tensor(' in text


@pytest.mark.slow
@pytest.mark.skipif(EXECUTABLE is None, reason="no chromium on PATH (Debian: apt-get install chromium)")
def test_in_a_browser_nothing_is_logged_requested_or_cut_off(tmp_path: Path, text: str) -> None:
    file = tmp_path / "report.html"
    file.write_text(text, encoding="utf-8")
    with browser() as chromium:
        for width in (390, 1280):
            for scheme in ("light", "dark"):
                chromium.open(file, width, scheme)
                assert chromium.problems() == []
                assert chromium.requests() == [file.resolve().as_uri()]
                assert chromium.evaluate("document.documentElement.scrollWidth") <= width
                shown = (
                    "[...document.querySelectorAll('svg')].filter(e => e.getBoundingClientRect().width > 250).length"
                )
                assert chromium.evaluate(shown) == 5
                background = chromium.evaluate("getComputedStyle(document.body).backgroundColor")
                assert background == {"light": "rgb(246, 247, 249)", "dark": "rgb(15, 18, 23)"}[scheme]


# ── the CI summary ───────────────────────────────────────────────────────────────────────────────


def test_the_summary_shows_arms_models_and_candidates(facts: dict[str, Any]) -> None:
    text = markdown.render(facts)
    assert f"| ceiling | {numbers.percent(facts['arms']['ceiling']['score'])} |" in text
    assert f"| deployed | {numbers.size(22_900_000)} |" in text
    assert "**dynamic_int8_reduced_range**" in text
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_the_summary_escapes_what_the_recipe_names(workspace: Workspace) -> None:
    text = markdown.render(contract.build(recipe(report={"title": HOSTILE}), workspace))
    assert "<script>" not in text
    assert r"\*\*bold\*\*" in text
    assert "## " + text.splitlines()[0].removeprefix("## ") == text.splitlines()[0]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (numbers.percent(0.9734), "97.3 %"),
        (numbers.percent(None), "–"),
        (numbers.percent(-0.015), "−1.5 %"),
        (numbers.size(23_600_000), "23.6 MB"),
        (numbers.size(512), "512 B"),
        (numbers.duration(0.8234), "0.82 ms"),
        (numbers.duration(312.4), "312 ms"),
        (numbers.duration(4100), "4.10 s"),
        (numbers.times(4.23), "4.2×"),
        (numbers.times(63.4), "63×"),
        (numbers.times(1417), "1,400×"),
        (numbers.points({"value": 0.055, "low": -0.01, "high": 0.12}), "5.5 (−1.0 to 12.0)"),
    ],
)
def test_how_numbers_are_written(written: str, expected: str) -> None:
    assert written.replace("\u00a0", " ") == expected
