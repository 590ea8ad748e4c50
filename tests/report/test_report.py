"""The report against a small committed run: the contract's shape, its numbers, and the page."""

from __future__ import annotations

import ast
import html
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from distillctl.commands import findings
from distillctl.data import controls_table as control_table
from distillctl.errors import GateFailed, UsageError
from distillctl.report import charts, contract, fail_under, formatting, markdown, page, verdict
from distillctl.run_dir import attempts
from distillctl.run_dir.facts import Facts, Interval
from distillctl.run_dir.workspace import StageOutput, Workspace
from distillctl.runtimes.onnxruntime import OnnxClassifier
from distillctl.stages import report
from tests.fixtures.browser import EXECUTABLE, browser
from tests.fixtures.report_run import CONTEXT, HOSTILE, LABELS, ROWS, alter, committed, fail_gate, recipe, reported

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Read only; a test that alters a manifest makes its own."""
    return committed(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def facts(workspace: Workspace) -> dict[str, Any]:
    return contract.build(recipe(), workspace).as_json()


@pytest.fixture(scope="module")
def text(workspace: Workspace, facts: dict[str, Any]) -> str:
    return page.render(reported(facts), contract.series(workspace))


# ── the contract ─────────────────────────────────────────────────────────────────────────────────


def test_the_contract_has_the_shape_that_ci_jobs_read(facts: dict[str, Any], workspace: Workspace) -> None:
    assert list(facts["arms"]) == [
        *("ceiling", "deployed", "student", "control", "majority", "bag_of_words", "cue_only", "floor")
    ]
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
    facts = contract.build(recipe(), workspace).as_json()
    assert facts["metric"] == "agreement"
    assert facts["arms"]["ceiling"]["score"] == facts["arms"]["ceiling"]["low"] == 1
    assert facts["arms"]["deployed"]["score"] == pytest.approx(1 - facts["verdicts"]["different"] / ROWS)
    text = page.render(reported(facts), contract.series(workspace))
    assert "agreement with the prompted teacher" in text
    assert facts["ceiling_by_construction"]
    assert "by construction" in text
    assert "| ceiling | 100.0\u00a0% | by construction |" in markdown.render(reported(facts))
    told = console_text(findings._arms(reported(facts)))
    assert "agreement with the prompted teacher" in " ".join(told.split())
    assert "1 by construction" in told
    assert "1.000 (1.000" not in told
    assert "Reference</th>" not in text


def test_a_context_that_does_nothing_is_called_so(tmp_path: Path) -> None:
    workspace = committed(tmp_path, gap=0.0, control=False)
    facts = contract.build(recipe(), workspace).as_json()
    assert set(facts["recovered"]) == {"deployed", "student", "majority", "bag_of_words"}
    assert set(facts["recovered"].values()) == {None}
    assert "control" not in facts["arms"]
    text = page.render(reported(facts), contract.series(workspace))
    assert "cannot be told apart" in text
    assert "no difference to the teacher that could be measured" in facts["headline"]
    assert "nothing for a smaller model to keep. The deployed model: " in markdown.render(reported(facts))
    gaps = {**facts["gaps"], "floor": {"value": -0.3, "low": -0.4, "high": -0.2}}
    assert "made the teacher worse by accuracy" in contract.headline(reported({**facts, "gaps": gaps}))


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
    facts = contract.build(recipe(quantize=quantize), workspace).as_json()
    text = page.render(reported(facts), contract.series(workspace))
    assert f"The {objective} candidate inside the gate was taken ({why}" in text
    assert f"at most {formatting.size(30_000_000)}, at most 0.05 nats" in text
    assert text.count(", on the front</td>") == 3


# ── every number traces to a manifest ────────────────────────────────────────────────────────────


ALTERED: list[tuple[str, str, Any, str]] = [
    ("collect", "arms.ceiling.score", 0.8765, formatting.percent(0.8765)),
    ("collect", "gaps.floor.value", 0.4321, "43.2 ("),
    ("collect", "context_tokens.teacher", 4567, "4,567"),
    ("collect", "shared_tokens", 4321, "Read the 4,321 tokens"),
    ("collect", "context_text", "Another context.", "Another context."),
    ("train", "kl", 0.1357, "0.1357 nats"),
    ("train", "control.agreement", 0.8642, formatting.percent(0.8642)),
    ("export", "max_logit_difference", 7.3e-5, "7.3e-05"),
    ("quantize", "candidates.2.kl", 0.0345, "0.0345"),
    ("quantize", "fp32.bytes", 91_234_567, formatting.size(91_234_567)),
    ("bench", "models.deployed.p50_ms", 9.87, formatting.duration(9.87)),
    ("bench", "models.teacher.p99_ms", 7654.3, formatting.duration(7654.3)),
    ("bench", "models.fp32.peak_rss_bytes", 123_400_000, formatting.size(123_400_000)),
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
    changed = contract.build(recipe(), workspace).as_json()
    assert changed["arms"]["deployed"] == facts["arms"]["control"]
    assert changed["recovered"]["deployed"] == facts["recovered"]["control"]


# ── verdicts ─────────────────────────────────────────────────────────────────────────────────────


def test_what_is_recovered_has_its_interval_and_its_metric_everywhere(facts: dict[str, Any], text: str) -> None:
    recovered = facts["recovered"]["deployed"]
    told = f"{formatting.percent(recovered['value'], 0)} ({formatting.interval(Interval(**recovered), 0)})"
    assert f"{told} of what the context did survives by accuracy" in facts["headline"]
    assert told in markdown.render(reported(facts))


def test_too_few_rows_or_too_wide_an_interval_allow_no_verdict(facts: dict[str, Any]) -> None:
    wide = {**facts, "recovered": {**facts["recovered"], "deployed": {"value": 0.9, "low": 0.7, "high": 1.05}}}
    few = {**facts, "arms": {arm: {**figure, "n": 99} for arm, figure in facts["arms"].items()}}
    assert verdict.cautions(reported(facts)) == []
    for altered in (wide, few):
        assert "of what the context did survives by" not in verdict.kept(reported(altered))
        assert "to say how much" in verdict.kept(reported(altered))
        assert [one.code for one in verdict.cautions(reported(altered))] == ["too-few-rows"]


def test_a_format_alone_is_no_headline(facts: dict[str, Any]) -> None:
    assert "was not measured" in verdict.kept(reported({**facts, "metric": "format"}))


def test_a_lead_that_may_be_none_is_told(tmp_path: Path, facts: dict[str, Any]) -> None:
    assert "no-better-than-control" not in {one["code"] for one in facts["cautions"]}
    workspace = committed(tmp_path)
    deployed = pq.read_table(workspace.folder("quantize") / "eval.parquet").to_pydict()
    said = [LABELS[int(np.argmax(row))] for row in deployed["deployed"]]
    control_table.write(workspace, deployed["id"], {"majority": [LABELS[0]] * ROWS, "bag_of_words": said})
    altered = contract.build(recipe(), workspace).as_json()
    [caution] = [one for one in altered["cautions"] if one["code"] == "no-better-than-control"]
    assert "The deployed model is not clearly better than a bag of words" in caution["text"]
    assert altered["controls"]["leads"]["bag_of_words"]["deployed"]["value"] == 0
    assert html.escape(caution["text"], quote=False) in page.render(reported(altered), contract.series(workspace))
    assert "not clearly better than a bag of words" in markdown.render(reported(altered))


def test_cautions_of_all_stages_stand_at_the_top(tmp_path: Path) -> None:
    workspace = committed(tmp_path)
    alter(workspace, "train", "cautions", [{"code": "collapse", "text": "One <answer> on most rows."}])
    facts = contract.build(recipe(), workspace).as_json()
    assert {"stage": "train", "code": "collapse", "text": "One <answer> on most rows."} in facts["cautions"]
    text = page.render(reported(facts), contract.series(workspace))
    assert text.index("One &lt;answer&gt; on most rows.") < text.index('<div class="tiles">')
    assert markdown.render(reported(facts)).index("most rows") < markdown.render(reported(facts)).index("| arm |")


# ── a gate that failed ───────────────────────────────────────────────────────────────────────────


@pytest.fixture
def failed(tmp_path: Path) -> Workspace:
    workspace = committed(tmp_path)
    fail_gate(workspace, recipe())
    return workspace


def test_a_failed_gate_leaves_a_report_of_what_there_is(failed: Workspace) -> None:
    facts = contract.build(recipe(), failed).as_json()
    assert "deployed" not in facts["arms"]
    assert set(facts["recovered"]) == {"student", "control", "majority", "bag_of_words"}
    assert facts["failed_gate"]["nearest"] == "dynamic_int8"
    assert (facts["models"], facts["artifact"]) == ({}, None)
    text = page.render(reported(facts), contract.series(failed))
    assert "nothing was deployed, and nothing was timed" in text
    assert "nearest, outside: kl 0.0810 &gt; 0.05 (quantize.gate.max_kl)" in text
    assert "Use it" not in text
    assert "No smaller model passed the gate" in facts["headline"]
    assert "quantize.gate.max" in markdown.render(reported(facts))
    told = "\n".join(console_text(one) for one in findings._report(reported(facts)))
    assert "quantize failed, so there is no deployed model" in told
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts


def test_a_failure_of_another_recipe_or_of_other_inputs_is_none(failed: Workspace) -> None:
    part = recipe().model_dump(mode="json", include={"quantize"})
    assert attempts.current(failed, "quantize", part)
    other = recipe(quantize={"gate": {"max_kl": 0.2}}).model_dump(mode="json", include={"quantize"})
    assert attempts.current(failed, "quantize", other) is None
    _export(failed, "another card")
    assert attempts.current(failed, "quantize", part) is None


def _export(workspace: Workspace, card: str) -> None:
    export = workspace.manifest("export")
    assert export
    (workspace.folder("export") / "README.md").write_text(card)
    workspace.commit(
        "export", recipe={}, inputs={}, outcome=StageOutput(["README.md"], export.read(Facts)), seed=0, seconds=0.0
    )


# ── bounds for CI ────────────────────────────────────────────────────────────────────────────────


def test_bounds_that_hold_pass_and_others_fail_with_figures(facts: dict[str, Any]) -> None:
    score = facts["arms"]["deployed"]["score"]
    fail_under.check_bounds(
        fail_under.parse([f"deployed={score}", "recovered=0.1", "floor=0"], recipe()), reported(facts)
    )
    bounds = fail_under.parse([f"deployed={score + 0.001}", "recovered.student=5"], recipe())
    with pytest.raises(GateFailed) as told:
        fail_under.check_bounds(bounds, reported(facts))
    assert told.value.exit_code == 6
    assert f"deployed is {score:.3f} (accuracy)" in told.value.what
    assert "recovered.student is " in told.value.what


def test_a_figure_that_is_not_known_fails(failed: Workspace) -> None:
    facts = contract.build(recipe(), failed).as_json()
    for option in ("recovered=-9", "deployed=0"):
        with pytest.raises(GateFailed, match="not known"):
            fail_under.check_bounds(fail_under.parse([option], recipe()), reported(facts))


@pytest.mark.parametrize("option", ["recoverd=0.9", "deployed", "deployed=much", "deployed=nan", "control=0.5", "=1"])
def test_a_bound_that_is_none_is_a_usage_error(option: str) -> None:
    with pytest.raises(UsageError, match="--fail-under"):
        fail_under.parse([option], recipe())


def console_text(renderable: Any) -> str:
    stream = io.StringIO()
    Console(file=stream, width=100).print(renderable)
    return stream.getvalue()


# ── the page ─────────────────────────────────────────────────────────────────────────────────────


def test_the_stage_writes_the_page_and_hands_back_the_contract(tmp_path: Path) -> None:
    workspace = committed(tmp_path)
    outcome = report.run(recipe(), workspace)
    assert outcome.outputs == ["report.html"]
    assert outcome.facts.as_json() == contract.build(recipe(), workspace).as_json()
    assert sorted(path.name for path in workspace.folder("report").iterdir()) == ["report.html"]


def test_the_page_is_the_same_each_time(workspace: Workspace, facts: dict[str, Any], text: str) -> None:
    assert page.render(reported(facts), contract.series(workspace)) == text


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
    facts = contract.build(recipe(), workspace).as_json()
    assert f"dynamic_int8 22.9\u00a0MB, 3.05\u00a0ms, KL {formatting.UNKNOWN};" in charts.candidates(reported(facts))


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
    text = markdown.render(reported(facts))
    assert f"| ceiling | {formatting.percent(facts['arms']['ceiling']['score'])} |" in text
    assert f"| deployed | {formatting.size(22_900_000)} |" in text
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
        (formatting.percent(0.9734), "97.3 %"),
        (formatting.percent(None), "–"),
        (formatting.percent(-0.015), "−1.5 %"),
        (formatting.size(23_600_000), "23.6 MB"),
        (formatting.size(512), "512 B"),
        (formatting.duration(0.8234), "0.82 ms"),
        (formatting.duration(312.4), "312 ms"),
        (formatting.duration(4100), "4.10 s"),
        (formatting.times(4.23), "4.2×"),
        (formatting.times(63.4), "63×"),
        (formatting.times(1417), "1,400×"),
        (formatting.points(Interval(value=0.055, low=-0.01, high=0.12)), "5.5 (−1.0 to 12.0)"),
    ],
)
def test_how_numbers_are_written(written: str, expected: str) -> None:
    assert written.replace("\u00a0", " ") == expected
