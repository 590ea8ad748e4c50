"""What the report says of a run that answers with text, besides what is said of every run."""

from __future__ import annotations

from typing import Any

import numpy as np

from distillctl.data import eval_table, view_table
from distillctl.data.view_table import ViewTable
from distillctl.data.views import CEILING, FLOOR, PUBLIC
from distillctl.metrics import leakage, text
from distillctl.recipe import Recipe, Text
from distillctl.report import necessity
from distillctl.runtimes import text_folder
from distillctl.soft_labels import responses
from distillctl.soft_labels.responses import Responses
from distillctl.soft_labels.text import TextLabels
from distillctl.workspace import Workspace

SHOWN = ("ceiling", "floor", "student", "deployed")
"""The arms whose answers stand side by side."""


def compare(
    recipe: Recipe, workspace: Workspace, views: ViewTable, facts: dict[str, dict[str, Any]]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Each arm's score per held-out row, float64 [N], and this task's own part of the contract.

    facts: stage → what its manifest says.
    """
    task, collect = recipe.generate, facts["collect"]
    teacher = {PUBLIC.get(arm, arm): _read(workspace, arm, "eval") for arm in (CEILING, FLOOR, *recipe.contexts.arms)}
    train, quantize = (
        eval_table.read(workspace.folder(stage) / "eval.parquet", views.id) for stage in ("train", "quantize")
    )
    own = {"deployed": quantize["deployed"], "student": train["student"]}
    own |= {"control": train["control"]} if "control" in train else {}
    said = {arm: found.text for arm, found in teacher.items()} | own
    against = (views.reference, said["ceiling"], task.format)
    scores = {arm: text.row_scores(task.metrics[0], found, *against) for arm, found in said.items()}
    # Without references that is what `metrics` has already.
    alike = [name for name in task.metrics if name != "format"] if views.has_references else []
    likeness = text.row_scores("chrf", said["deployed"], [None], said["ceiling"], None)
    cut = {"ceiling": teacher["ceiling"].cut, "floor": teacher["floor"].cut, "student": train["student_cut"]}

    def answers(rows: list[int]) -> list[dict[str, Any]]:
        return [
            {
                "input": views.input[row],
                "reference": views.reference[row],
                "likeness": float(likeness[row]),
                "said": {arm: said[arm][row] for arm in SHOWN},
                "cut": [arm for arm, column in cut.items() if column[row]],
            }
            for row in rows
        ]

    sampled = np.random.default_rng(recipe.seed).permutation(len(views.id))[: recipe.report.answers]
    furthest = np.argsort(likeness, kind="stable")[: recipe.report.disagreements]
    lengths = np.array([len(ids) for ids in teacher["ceiling"].token_ids])
    return scores, {
        "artifact": f"quantize/{_graph(facts['export'])}",
        "builder": facts["export"]["builder"],
        "genai": (workspace.folder("quantize") / "genai_config.json").is_file(),
        "begin": text_folder.begin(workspace.folder("quantize")) if facts["export"]["builder"] != "seq2seq" else [],
        "stop": list(task.stop),
        "max_new_tokens": task.max_new_tokens,
        "metrics": collect["metrics"] | {arm: text.corpus(task.metrics, found, *against) for arm, found in own.items()},
        "like_ceiling": {
            arm: text.corpus(alike, found, [None], said["ceiling"], None) for arm, found in said.items() if alike
        },
        "responses": collect["responses"],
        "per_token": _per_token(train, quantize, lengths, facts["train"]["control"]),
        "necessity": collect["necessity"]
        and collect["necessity"] | necessity.spread(teacher["floor"].context_kl or []),
        "leakage": _leakage(recipe, workspace, views, own),
        "verdicts": {
            "rows": len(views.id),
            "different": _different(said["ceiling"], said["deployed"]),
            "quantization": _different(said["student"], said["deployed"]),
            "likeness": float(likeness.mean()),
        },
        "sampled": answers(sampled.tolist()),
        "furthest": answers(furthest.tolist()),
        "parity": {key: facts["export"][key] for key in ("max_logit_difference", "rows", "prompts", "equal_prompts")},
    }


def _read(workspace: Workspace, context: str, split: str) -> Responses:
    """What was said, without the distributions."""
    return responses.read(workspace, context, split, TextLabels(Text()))


def _graph(export: dict[str, Any]) -> str:
    """The file that writes the answer; an encoder–decoder has an encoder beside it."""
    return "decoder_model_merged.onnx" if export["builder"] == "seq2seq" else "model.onnx"


def _per_token(
    train: dict[str, Any], quantize: dict[str, Any], lengths: np.ndarray, control: dict[str, Any] | None
) -> dict[str, dict[str, float | None]]:
    """Arm → KL from the teacher, −log Q of its response, share of its first choices; None: not measured."""
    found = {
        arm: {key: _mean(columns.get(key), lengths) for key in ("kl", "nll", "same_top")}
        for arm, columns in (("deployed", quantize), ("student", train))
    }
    if control is not None:
        found["control"] = {"kl": control["kl"], "nll": control["nll"], "same_top": control["agreement"]}
    return found


def _mean(per_row: np.ndarray | None, lengths: np.ndarray) -> float | None:
    """Per token of the teacher's responses, of means [N] over each response's ``lengths`` tokens."""
    if per_row is None:
        return None
    return float(np.average(per_row, weights=lengths if lengths.any() else None))  # of a served text none are known


def _different(one: list[str], other: list[str]) -> int:
    return sum(a != b for a, b in zip(one, other, strict=True))


# ── references to the context ────────────────────────────────────────────────────────────────────


def _leakage(recipe: Recipe, workspace: Workspace, views: ViewTable, own: dict[str, list[str]]) -> dict[str, Any]:
    """How many of the teacher's responses, of both splits, refer to the context, and the worst of them; and how many
    answers of the student do."""
    found: list[dict[str, Any]] = []
    count = 0
    folder = workspace.folder("collect")
    for split in ("train", "eval"):
        table = view_table.read(folder / "views.parquet", split)
        place = {row: index for index, row in enumerate(table.id)}
        said = _read(workspace, CEILING, split)
        rows = [place[row] for row in said.id]
        count += len(rows)
        for row, response, spans in zip(rows, said.text, _spans(said.text, table, rows), strict=True):
            if spans:
                found.append({"split": split, "input": table.input[row], "text": response, "spans": spans})
    found.sort(key=lambda one: -sum(span["end"] - span["start"] for span in one["spans"]))
    everyone = list(range(len(views.id)))
    return {
        "words": leakage.WORDS,
        "responses": count,
        "leaking": len(found),
        **{why: sum(any(span["why"] == why for span in one["spans"]) for one in found) for why in ("copied", "phrase")},
        "own": {arm: sum(map(bool, _spans(said, views, everyone))) for arm, said in own.items()},
        "listed": found[: recipe.report.answers],
    }


def _spans(said: list[str], views: ViewTable, rows: list[int]) -> list[list[dict[str, Any]]]:
    # The student sees the simplified view; the input also counts as seen where a template leaves part of it out.
    seen = [f"{views.simplified[row]}\n{views.input[row]}" for row in rows]
    found = leakage.spans(said, [views.full[row] for row in rows], seen)
    return [[vars(span) for span in spans] for spans in found]
