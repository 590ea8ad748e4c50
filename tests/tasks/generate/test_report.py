"""The report of a run that answers with text: the contract's shape, its numbers, and the page."""

from __future__ import annotations

import html
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from distillctl.commands import findings, text_findings
from distillctl.data import eval_table, view_table
from distillctl.data.responses import clean
from distillctl.errors import UpstreamError
from distillctl.metrics import text as text_metrics
from distillctl.pipeline import StageResult
from distillctl.report import contract, formatting, markdown, page
from distillctl.run_dir.workspace import Manifest, Workspace
from distillctl.runtimes.onnx_decoder import OnnxDecoder
from distillctl.stages import report
from distillctl.tasks.generate import context_kl
from distillctl.tasks.generate.facts import GenerateReport, PointingResponse, ShownAnswers
from tests.fixtures import real_run_generate
from tests.fixtures.browser import EXECUTABLE, browser
from tests.fixtures.report_run import HOSTILE, alter, reported
from tests.fixtures.report_run_generate import COPIED, METRICS, ROWS, committed, recipe

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Read only; a test that alters something makes its own."""
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
        *("ceiling", "deployed", "student", "control", "most_frequent", "nearest_row", "cue_only", "floor")
    ]
    for arm in facts["arms"].values():
        assert set(arm) == {"score", "low", "high", "n", "metric"}
        assert arm["low"] <= arm["score"] <= arm["high"]
        assert arm["metric"] == facts["metric"] == "chrf"
    assert set(facts["recovered"]) == {"student", "deployed", "control", "most_frequent", "nearest_row"}
    for model in facts["models"].values():
        assert model.keys() >= {"p50_ms", "bytes", "peak_rss_bytes", "first_token_ms", "decode_tokens_per_second"}
    assert facts["artifact"] == "quantize/model.onnx"
    assert set(facts["metrics"]) == set(facts["arms"])
    assert all(list(values) == list(METRICS) for values in facts["metrics"].values())
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts


def test_scores_and_what_is_recovered_come_from_the_texts(facts: dict[str, Any], workspace: Workspace) -> None:
    table = pq.read_table(workspace.folder("train") / "eval.parquet").to_pydict()
    views = pq.read_table(workspace.folder("collect") / "views.parquet").to_pydict()
    rows = text_metrics.row_scores("chrf", table["student"], views["reference"][2:], [], None)
    score = {arm: figure["score"] for arm, figure in facts["arms"].items()}
    assert score["student"] == pytest.approx(rows.mean())
    whole = text_metrics.corpus(["bleu"], table["student"], views["reference"][2:], [], None)
    assert facts["metrics"]["student"]["bleu"] == whole["bleu"]
    for arm in ("student", "deployed", "control"):
        share = (score[arm] - score["floor"]) / (score["ceiling"] - score["floor"])
        assert facts["recovered"][arm]["value"] == pytest.approx(share)
        assert facts["recovered"][arm]["low"] < share < facts["recovered"][arm]["high"]


def test_likeness_to_the_teachers_own_answers(tmp_path: Path, facts: dict[str, Any], workspace: Workspace) -> None:
    table = pq.read_table(workspace.folder("train") / "eval.parquet").to_pydict()
    shard = next((workspace.folder("collect") / "shards").glob("full-eval-*"))
    said = pq.read_table(shard).to_pydict()["text"]
    assert set(facts["like_ceiling"]) == set(facts["arms"])
    assert set(facts["like_ceiling"]["ceiling"].values()) == {1}
    expected = text_metrics.corpus(METRICS, table["student"], said, [], None)
    assert facts["like_ceiling"]["student"] == expected != facts["metrics"]["student"]
    assert contract.build(recipe(), committed(tmp_path, references=False)).as_json()["like_ceiling"] == {}


def test_what_a_user_notices_stands_in_contract_page_and_summary(tmp_path: Path, facts: dict[str, Any]) -> None:
    assert set(facts["checks"]) == set(facts["arms"])
    assert facts["checks"]["ceiling"]["empty"] == pytest.approx(1 / ROWS)
    workspace = committed(tmp_path)
    file = workspace.folder("quantize") / "eval.parquet"
    table = pq.read_table(file)
    place = table.column_names.index("deployed")
    answers = ["Sorry, %s", *table["deployed"].to_pylist()[1:]]
    pq.write_table(table.set_column(place, "deployed", pa.array(answers)), file)
    found = contract.build(recipe(report={"languages": {"input": "fr", "answer": "en"}}), workspace).as_json()
    assert {"%s"} <= set(found["broken_placeholders"][0]["extra"])
    assert found["checks"]["deployed"]["untranslated"]["value"] < 0.5
    assert found["checks"]["most_frequent"]["untranslated"] is None  # too short to be judged
    text = html.unescape(page.render(reported(found), contract.series(workspace)))
    assert "What a user notices at once" in text
    assert "Too many: <code>%s</code>" in text
    printed = io.StringIO()
    Console(file=printed, width=80).print(*text_findings.report(reported(found).part(GenerateReport), "deployed"))
    assert re.search(r"arm +placeholders +invented +empty +looping +length +untranslated", printed.getvalue())


def test_what_a_user_notices_in_the_candidates_stands_on_the_page(workspace: Workspace, facts: dict[str, Any]) -> None:
    assert "The candidates’ answers" not in page.render(reported(facts), contract.series(workspace))
    checks = {"int4_rtn_block32": facts["checks"]["deployed"]}
    found = facts | {"candidate_metrics": {"int4_rtn_block32": {"chrf": 0.512}}, "candidate_checks": checks}
    text = page.render(reported(found), contract.series(workspace))
    assert "The candidates’ answers" in text
    assert "51.2" in text


def test_means_per_token_weigh_rows_by_their_tokens(facts: dict[str, Any], workspace: Workspace) -> None:
    table = pq.read_table(workspace.folder("train") / "eval.parquet").to_pydict()
    shard = next((workspace.folder("collect") / "shards").glob("full-eval-*"))
    lengths = [len(ids) for ids in pq.read_table(shard)["token_ids"].to_pylist()]
    assert len(set(lengths)) > 1
    mean = float(np.average(table["kl"], weights=lengths))
    assert facts["per_token"]["student"]["kl"] == pytest.approx(mean, rel=1e-5)
    assert facts["per_token"]["control"] == {"kl": 0.4123, "nll": 0.6311, "same_top": 0.887}


def test_the_order_of_rows_in_eval_parquet_does_not_matter(tmp_path: Path, facts: dict[str, Any]) -> None:
    workspace = committed(tmp_path)
    for stage in ("train", "quantize"):
        file = workspace.folder(stage) / "eval.parquet"
        pq.write_table(pq.read_table(file).take(list(range(ROWS - 1, -1, -1))), file)
    found = contract.build(recipe(), workspace).as_json()
    same = {"arms", "recovered", "metrics", "per_token", "verdicts", "sampled", "furthest"}
    assert {key: found[key] for key in same} == {key: facts[key] for key in same}


def test_without_references_answers_are_compared_with_the_ceilings(tmp_path: Path) -> None:
    workspace = committed(tmp_path, references=False)
    facts = contract.build(recipe(), workspace).as_json()
    assert facts["metric"] == "chrf vs ceiling"
    assert facts["arms"]["ceiling"]["low"] == facts["metrics"]["ceiling"]["bleu"] == 1
    assert facts["arms"]["deployed"]["score"] == pytest.approx(facts["verdicts"]["likeness"])
    text = page.render(reported(facts), contract.series(workspace))
    assert "chrF against the teacher's answers" in html.unescape(text)
    assert "> Reference</" not in text
    assert "chrF against the teacher's answers" in markdown.render(reported(facts))


def test_a_run_without_distributions_has_likelihoods_alone(tmp_path: Path) -> None:
    workspace = committed(tmp_path, distributions=False, control=False)
    facts = contract.build(recipe(), workspace).as_json()
    assert facts["per_token"]["student"]["kl"] is None
    assert facts["per_token"]["deployed"]["nll"] > 0.4
    assert set(facts["per_token"]) == {"student", "deployed"}
    text = page.render(reported(facts), contract.series(workspace))
    assert formatting.nats(facts["per_token"]["student"]["nll"]) in text


def test_answers_of_one_token_have_no_speed_of_the_others(tmp_path: Path) -> None:
    workspace = committed(tmp_path, control=False)
    bench = workspace.manifest("bench")
    assert bench
    for model in bench.facts["models"]:
        for figure in ("decode_tokens_per_second", "token_p50_ms", "token_p90_ms", "token_p99_ms"):
            alter(workspace, "bench", f"models.{model}.{figure}", None)
    facts = contract.build(recipe(), workspace).as_json()
    text = page.render(reported(facts), contract.series(workspace))
    assert f'<td class="figure">{formatting.UNKNOWN}&nbsp;/s</td>' in text
    assert f"| {formatting.duration(7.3)} | {formatting.UNKNOWN} |" in markdown.render(reported(facts))
    assert "   7.30         - " in _told("bench", workspace.manifest("bench"))


def test_genai_is_told_the_tokens_that_begin_a_view(workspace: Workspace, facts: dict[str, Any], text: str) -> None:
    assert facts["begin"] == []
    assert "ids = list(tokenizer.encode(view(text)))\n" in html.unescape(text)
    other = html.unescape(page.render(reported(facts | {"begin": [2]}), contract.series(workspace)))
    assert "ids = [2] + list(tokenizer.encode(view(text)))\n" in other
    assert "<code>2</code>): put them in front" in other


def test_the_rows_that_differ_most_come_first(facts: dict[str, Any]) -> None:
    found = [row["likeness"] for row in facts["furthest"]]
    assert len(found) == 12
    assert found == sorted(found)
    assert all(found[-1] <= row["likeness"] or row in facts["furthest"] for row in facts["sampled"])
    assert facts["verdicts"]["different"] >= sum(likeness < 1 for likeness in found)


def test_the_sample_is_drawn_by_the_recipes_seed(workspace: Workspace, facts: dict[str, Any]) -> None:
    assert len(facts["sampled"]) == 12
    few = contract.build(recipe(report={"answers": 3, "disagreements": 0}), workspace).as_json()
    assert few["sampled"] == facts["sampled"][:3]
    assert few["furthest"] == []
    assert contract.build(recipe(seed=1, report={"answers": 3}), workspace).as_json()["sampled"] != few["sampled"]


def test_responses_that_point_at_the_context_are_listed(facts: dict[str, Any]) -> None:
    found = facts["leakage"]
    assert found["responses"] == ROWS + 2  # the train rows too
    assert {row["split"] for row in found["listed"]} == {"train", "eval"}
    worst = found["listed"][0]
    assert [worst["text"][span["start"] : span["end"]] for span in worst["spans"]] == ["As stated above", COPIED]
    assert (found["leaking"], found["copied"], found["phrase"]) == (2, 2, 1)


# ── need of the context ──────────────────────────────────────────────────────────────────────────


@example([[1e-12]])
@given(st.lists(st.lists(st.floats(0, 20, width=32), min_size=1, max_size=70), min_size=1, max_size=5))
def test_shares_of_tokens_and_nats_add_up(rows: list[list[float]]) -> None:
    found = context_kl.spread([np.array(row, np.float32) for row in rows]).as_json()
    every = np.concatenate([np.array(row, np.float32) for row in rows]).astype(float)
    assert sum(one["tokens"] for one in found["bins"]) == pytest.approx(1)
    assert sum(one["nats"] for one in found["bins"]) == pytest.approx(1 if every.sum() > 0 else 0)
    edges = [(one["low"], one["high"]) for one in found["bins"]]
    for (low, high), one in zip(edges, found["bins"], strict=True):
        inside = (every >= low) & (every < (np.inf if high is None else high))
        assert one["tokens"] == pytest.approx(inside.mean())
    longest = max(map(len, rows))
    stretches = [range(one["first"], one["last"] + 1) for one in found["positions"]]
    assert [place for stretch in stretches for place in stretch] == list(range(1, longest + 1))
    assert found["positions"][0]["mean"] == pytest.approx(np.mean([np.float32(row[0]) for row in rows]))


def test_no_responses_have_no_spread() -> None:
    assert context_kl.spread([]).as_json() == {"tokens": 0, "bins": [], "positions": []}


# ── every number traces to a manifest ────────────────────────────────────────────────────────────

ALTERED: list[tuple[str, str, Any, str]] = [
    ("collect", "metrics.floor.bleu", 0.1234, formatting.percent(0.1234)),
    ("collect", "responses.cut", 717, "717 of them cut off"),
    ("collect", "responses.bytes_per_token", 345.6, "346 bytes per token"),
    ("collect", "responses.captured_mass.p5", 0.8765, formatting.percent(0.8765, 2)),
    ("collect", "necessity.mean", 0.9753, "0.9753 nats in the mean"),
    ("train", "control.nll", 0.8642, "0.8642"),
    ("export", "equal_prompts", 4747, "4,747 of"),
    ("bench", "models.deployed.first_token_ms", 9.87, formatting.duration(9.87)),
    ("bench", "models.deployed.decode_tokens_per_second", 333.0, "333 tokens a second"),
    ("bench", "models.teacher.kv_bytes", 77_700_000, formatting.size(77_700_000)),
    ("bench", "models.deployed.view_tokens", 87.6, "the deployed model reads 87.6"),
    ("bench", "agreement.fp32", 0.1234, "Student, fp32 " + formatting.percent(0.1234)),
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


# ── the page ─────────────────────────────────────────────────────────────────────────────────────


def test_the_stage_writes_the_page_and_hands_back_the_contract(tmp_path: Path) -> None:
    workspace = committed(tmp_path)
    outcome = report.run(recipe(), workspace)
    assert outcome.facts.as_json() == contract.build(recipe(), workspace).as_json()
    assert "side by side" in (workspace.folder("report") / "report.html").read_text(encoding="utf-8")


def test_every_text_of_the_user_is_escaped(workspace: Workspace) -> None:
    everything = recipe(report={"title": HOSTILE, "answers": ROWS})
    text = page.render(contract.build(everything, workspace), contract.series(workspace))
    assert HOSTILE not in text
    assert "<b>parcel</b>" not in text
    assert text.count("&lt;script&gt;alert") >= 4  # title, eyebrow, an answer, the sample


def test_who_gave_the_same_answer_shares_it() -> None:
    row = {"said": {"ceiling": "Yes.", "floor": "", "student": "Yes.", "deployed": "No."}, "reference": "No."}
    assert list(page._voices(ShownAnswers(**row, cut=["student"], input="", likeness=0.0))) == [
        {"text": "Yes.", "names": ["ceiling", "student"], "cut": True},
        {"text": "", "names": ["floor"], "cut": False},
        {"text": "No.", "names": ["deployed", "reference"], "cut": False},
    ]


def test_marked_pieces_are_the_text_again_and_each_mark_is_whole() -> None:
    spans = [{"start": 0, "end": 5, "why": "copied"}, {"start": 3, "end": 8, "why": "phrase"}]
    row = {"text": "above all, no", "spans": [*spans, {"start": 4, "end": 6, "why": "copied"}]}
    found = list(page._pieces(PointingResponse(**row, split="train", input="")))
    assert "".join(piece for piece, _ in found) == row["text"]
    assert [(piece, why) for piece, why in found if why] == [("above", "copied"), (" al", "phrase")]


def test_an_empty_answer_and_one_that_was_cut_off_are_told(workspace: Workspace) -> None:
    everything = recipe(report={"answers": ROWS, "disagreements": 0})
    text = page.render(contract.build(everything, workspace), contract.series(workspace))
    assert text.count('<span class="note">nothing</span>') == 1
    assert text.count("cut off at 40 tokens</span>") == 3  # row 3 of ceiling and floor, row 5 of the student


def test_ids_are_unique_and_every_chart_is_told_in_words(text: str) -> None:
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:xlink:href="#|url\(#|aria-labelledby=")([^")]+)', text)) <= set(ids)
    told = re.findall(r'<svg[^>]*role="img" aria-label="([^"]{40,})"', text)
    assert len(told) == text.count("<svg") == 14
    assert "#0101" not in text


def test_the_python_example_answers_as_the_runtime_does(workspace: Workspace, text: str) -> None:
    found = re.search(r'<code id="use-python">(.*?)</code>', text, re.DOTALL)
    assert found
    code = html.unescape(found[1])
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=workspace.root
    ).stdout
    decoder = OnnxDecoder(workspace.folder("quantize"))
    ids = decoder.generate(decoder.encode(HOSTILE + "\n"), 40)
    assert len(ids) > 2
    assert printed == clean(decoder.decode(ids), ["\n"]) + "\n"


def test_the_page_of_an_encoder_decoder_runs_both_graphs(tmp_path: Path) -> None:
    workspace = committed(tmp_path)
    alter(workspace, "export", "builder", "seq2seq")
    facts = contract.build(recipe(), workspace).as_json()
    assert facts["artifact"].endswith("decoder_model_merged.onnx")
    text = page.render(reported(facts), contract.series(workspace))
    found = re.search(r'<code id="use-python">(.*?)</code>', text, re.DOTALL)
    assert found
    code = html.unescape(found[1])
    compile(code, "example", "exec")
    assert 'encoder.run(["last_hidden_state"]' in code
    assert "position_ids" not in code


@pytest.mark.slow
@pytest.mark.skipif(EXECUTABLE is None, reason="no chromium on PATH (Debian: apt-get install chromium)")
def test_in_a_browser_nothing_is_logged_requested_or_cut_off(tmp_path: Path, text: str) -> None:
    file = tmp_path / "report.html"
    file.write_text(text, encoding="utf-8")
    with browser() as chromium:
        for width, most in ((390, 1), (1280, 5)):
            for scheme in ("light", "dark"):
                chromium.open(file, width, scheme)
                assert chromium.problems() == []
                assert chromium.requests() == [file.resolve().as_uri()]
                assert chromium.evaluate("document.documentElement.scrollWidth") <= width
                # how many answers stand beside each other where there is most to show
                columns = (
                    "Math.max(...[...document.querySelectorAll('.voices')].map("
                    "e => getComputedStyle(e).gridTemplateColumns.split(' ').length))"
                )
                assert chromium.evaluate(columns) == most


# ── a run of the real stages ─────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def real() -> dict[str, Any]:
    manifest = real_run_generate.finished()[1].manifest("report")
    assert manifest
    return manifest.facts


def test_four_arms_and_every_model_of_a_real_run(real: dict[str, Any]) -> None:
    own = ["deployed", "student", "control", "most_frequent", "nearest_row"]
    assert list(real["arms"]) == ["ceiling", *own, "floor"]
    assert all(arm["low"] <= arm["score"] <= arm["high"] for arm in real["arms"].values())
    assert set(real["recovered"]) == set(own)
    leads = real["controls"]["leads"]["nearest_row"]
    score = {arm: figure["score"] for arm, figure in real["arms"].items()}
    assert leads["student"]["value"] == pytest.approx(score["student"] - score["nearest_row"])
    assert real["arms"]["ceiling"]["score"] > real["arms"]["floor"]["score"]
    assert list(real["models"]) == ["teacher", "teacher_cached", "fp32", "deployed", "deployed_genai"]
    assert real["timed_agreement"] == dict.fromkeys(real["models"], 1.0)
    assert real["genai"] is True
    assert [one["chosen"] for one in real["candidates"]].count(True) == 1
    for arm, found in real["per_token"].items():
        assert found["kl"] > 0, arm
        assert 0 <= found["same_top"] <= 1
    assert real["necessity"]["tokens"] > real_run_generate.ROWS
    assert len(real["sampled"]) == real_run_generate.ROWS


def test_answers_side_by_side_are_those_of_the_stages(real: dict[str, Any]) -> None:
    workspace = real_run_generate.finished()[1]
    views = view_table.read(workspace.folder("collect") / "views.parquet", "eval")
    train, quantize = (eval_table.read(workspace.folder(s) / "eval.parquet", views.id) for s in ("train", "quantize"))
    for row in real["sampled"]:
        place = views.input.index(row["input"])
        assert row["said"]["student"] == train["student"][place]
        assert row["said"]["deployed"] == quantize["deployed"][place]
        assert row["reference"] == views.reference[place]


@pytest.mark.parametrize("example", ["use-python", "use-genai"])
def test_what_the_page_says_to_type_gives_the_deployed_models_answer(example: str) -> None:
    workspace = real_run_generate.finished()[1]
    text = (workspace.folder("report") / "report.html").read_text(encoding="utf-8")
    found = re.search(rf'<code id="{example}">(.*?)</code>', text, re.DOTALL)
    assert found
    views = view_table.read(workspace.folder("collect") / "views.parquet", "eval")
    answers = eval_table.read(workspace.folder("quantize") / "eval.parquet", views.id)["deployed"]
    # A random model also writes bytes that are no UTF-8, at the first of which genai 0.18 ends a text.
    valid = [said.partition("\N{REPLACEMENT CHARACTER}")[0] for said in answers]
    row = max(range(len(valid)), key=lambda place: len(valid[place]))
    code = html.unescape(found[1]).replace(repr(views.simplified[0]), repr(views.simplified[row]))
    printed = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=workspace.root)
    said = answers[row]
    if example == "use-genai":
        printed, said = printed.partition("\N{REPLACEMENT CHARACTER}")[0], valid[row]
    assert len(valid[row]) > 5
    assert printed.rstrip("\n") == said.rstrip("\n")


def test_every_stage_of_a_real_run_tells_its_findings() -> None:
    workspace = real_run_generate.finished()[1]
    told = {stage: _told(stage, workspace.manifest(stage)) for stage in (*contract.UPSTREAM, "report")}
    assert "LlamaForCausalLM by genai" in told["export"]
    assert "the same answer to 10 of 10 prompts" in told["export"]
    assert "chosen" in told["quantize"]
    assert "deployed_genai" in told["bench"]
    assert "recovered by deployed" in told["report"]


# ── the CI summary ───────────────────────────────────────────────────────────────────────────────


def test_the_summary_shows_the_first_token_and_all_metrics(facts: dict[str, Any]) -> None:
    text = markdown.render(reported(facts))
    assert "| model | size | first token | tokens/s | p50 |" in text
    assert f"| {formatting.duration(7.3)} | 241 |" in text
    assert "| corpus chrF | corpus BLEU |" in text
    assert "same top token" in text
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1


# ── what the commands say ────────────────────────────────────────────────────────────────────────


def test_every_stage_tells_its_findings(workspace: Workspace, facts: dict[str, Any]) -> None:
    told = {stage: _told(stage, workspace.manifest(stage)) for stage in contract.UPSTREAM}
    assert f"{ROWS + 2} responses of 13.4 tokens in the mean, 1 cut off; 201 bytes per token on disk" in told["collect"]
    assert "99.91% of the probability kept in the median" in told["collect"]
    assert "over the corpus chrF BLEU share of exact answers" in " ".join(told["collect"].split())
    assert "KL to the teacher 0.2311 nats per token" in told["train"]
    assert "from 49,152 to 9,120 tokens: 92.3 MB (36%)" in told["train"]
    assert "the same answer to 50 of 50 prompts" in told["export"]
    assert "int4_k_quant_block32" in told["quantize"]
    assert "first ms  tokens/s" in told["bench"]
    found = workspace.manifest("bench")
    assert found
    told_report = _told("report", found.model_copy(update={"stage": "report", "facts": facts}))
    assert f"2 of {ROWS + 2} labelled responses point at the context" in told_report


def _told(stage: str, manifest: Manifest | None) -> str:
    """The readable result as plain text, 200 columns wide."""
    assert manifest
    printed = io.StringIO()
    Console(file=printed, width=200).print(*findings.readable(StageResult(stage, manifest, False, 1.0)), sep="\n")
    return printed.getvalue()


# ── eval.parquet ─────────────────────────────────────────────────────────────────────────────────


def test_eval_parquet_is_read_in_the_order_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "eval.parquet"
    columns = {
        "id": ["a", "b"],
        "said": ["A", None],
        "log_probs": pa.array([[0.0, 1.0], [2.0, 3.0]], pa.list_(pa.float32())),
        "kl": pa.array([0.5, None], pa.float32()),
        "ids": [[1], [2, 3]],
        "control": pa.nulls(2, pa.string()),
    }
    pq.write_table(pa.table(columns), file)
    found = eval_table.read(file, ["b", "a"])
    assert found["said"] == [None, "A"]
    assert found["ids"] == [[2, 3], [1]]
    np.testing.assert_array_equal(found["log_probs"], np.array([[2, 3], [0, 1]], np.float32))
    assert found["kl"].dtype == np.float32
    assert np.isnan(found["kl"][0])
    assert set(found) == {"said", "log_probs", "kl", "ids"}  # what nobody measured is not there


def test_eval_parquet_that_lacks_a_row_or_is_torn(tmp_path: Path) -> None:
    file = tmp_path / "eval.parquet"
    pq.write_table(pa.table({"id": ["a"], "said": ["A"]}), file)
    with pytest.raises(UpstreamError, match="'b'"):
        eval_table.read(file, ["a", "b"])
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(UpstreamError, match="damaged"):
        eval_table.read(file, ["a"])


def test_probes_are_answered_and_shown_but_neither_learned_from_nor_scored() -> None:
    made, workspace = real_run_generate.finished()
    manifest = workspace.manifest("report")
    assert manifest
    probes = manifest.facts["probes"]
    assert [probe["input"] for probe in probes] == ["", "the king 12345"] == list(made.generate.probes)
    graph = OnnxDecoder(workspace.folder("quantize"))
    for probe in probes:
        view = graph.encode(probe["input"])  # an empty text has no token, and so no answer
        ids = graph.generate(view, real_run_generate.MAX_NEW_TOKENS) if view else []
        assert probe["deployed"] == clean(graph.decode(ids), ["e"])
    shards = {path.name.rsplit("-", 2)[0] for path in (workspace.folder("collect") / "shards").iterdir()}
    assert shards == {"full-train", "full-eval", "full-probe", "simplified-eval"}
    assert manifest.facts["arms"]["ceiling"]["n"] == real_run_generate.ROWS
    text = html.unescape(page.render(reported(manifest.facts), contract.series(workspace)))
    assert "Answers to the recipe’s probes" in text
    assert "(empty)" in text
