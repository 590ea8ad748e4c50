"""make bench-softlabels: what soft labels take on disk, and what a student loses that has only them.

On what a recipe's teacher said in a run directory (`distillctl collect`), which it scores once more under its full
context: whole distributions, in memory. Of these the profiles are written as collect writes them, with the ids they
have, and once more with the same probabilities under other ids, spread at random over a vocabulary of 151,936, which
is as large as ids get in practice. Then one student, a few layers of the teacher under the simplified context, is
trained on the whole distributions, on the k likeliest tokens (with draws from their tail, and with its mass alone), and
on drawn tokens (both for several seeds of the draws), always from the same weights on the same batches; what counts is
its KL on eval rows, exact and over the whole vocabulary. Prints a table, then one JSON object.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, get_scheduler

from distillctl import console
from distillctl import recipe as recipes
from distillctl.data import batching, examples, view_table, views
from distillctl.data.responses import Response
from distillctl.data.views import CEILING
from distillctl.errors import UpstreamError, UserFacingError
from distillctl.losses.targets import DenseTargets
from distillctl.models import model_source
from distillctl.recipe import ForwardKL, HuggingFaceTeacher, Recipe, Sampled, Text, TopK, Train, implementation
from distillctl.run_dir.workspace import Workspace
from distillctl.soft_labels import response_shards as store
from distillctl.soft_labels.ragged import Ragged
from distillctl.soft_labels.response_shards import Responses, SoftLabelCodec
from distillctl.soft_labels.shards import Shard
from distillctl.soft_labels.text import TextLabels
from distillctl.students.truncated import keep_layers
from distillctl.tasks.generate import objective
from distillctl.tasks.generate.response_rows import ResponseRows
from distillctl.teachers import huggingface
from distillctl.teachers.huggingface import Teacher
from distillctl.teachers.shared_context import common_prefix
from distillctl.training.learner import Batch

TOKENS = {"train": 8000, "eval": 3000}
"""Response tokens at most; 96 KiB of memory each at a vocabulary of 49,152, in half precision."""
LARGE = 151_936
DRAWN = (0, 1)
"""Seeds of the draws."""
KINDS = {"top_k": TopK(k=32), "top_k_lumped": TopK(k=32, tail_draws=0), "sampled": Sampled(draws=50)}
STEPS, ROWS, LEARNING_RATE = 110, 8, 5e-4
ENDS = 2
"""The student: so many of the teacher's first and of its last layers."""


@dataclass(frozen=True)
class Said:
    """Answered rows: the student's view of each, what was said, and all log-probabilities there, float16 [T, V]."""

    views: list[list[int]]
    responses: list[Response]
    log_probs: list[np.ndarray]

    @property
    def tokens(self) -> int:
        return sum(len(response.token_ids) for response in self.responses)

    def dense(self, rows: Batch) -> DenseTargets:
        """All positions of some rows. Rounding a logarithm to half precision changes a probability by 2^−11 log p."""
        token_ids = [token for row in rows for token in self.responses[row].token_ids]
        return DenseTargets(torch.tensor(token_ids), torch.cat([self.exact(row) for row in rows]))

    def exact(self, row: int) -> Tensor:
        """Normalised log-probabilities float32 [T, V] of one row."""
        return torch.from_numpy(self.log_probs[row]).float().log_softmax(-1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure a recipe's teacher."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.soft_labels", description=__doc__)
    parser.add_argument("recipe", type=Path, nargs="?", default=Path("recipes/tickets.yaml"))
    parser.add_argument("--run-dir", type=Path, help="where collect has been (default: runs/NAME)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    options = parser.parse_args(arguments)
    recipe = recipes.load(options.recipe)
    found = measure(recipe, Workspace(options.run_dir or Path("runs") / recipe.name))
    if not options.json:
        _print_table(found)
    console.print_json(found)


def measure(recipe: Recipe, workspace: Workspace) -> dict[str, Any]:
    """The figures; of ``students``, held-out KLs by profile, and for draws by seed."""
    if workspace.manifest("collect") is None:
        raise UpstreamError(
            "nothing was collected",
            where=str(workspace.root),
            next=f"distillctl collect RECIPE --run-dir {workspace.root}",
        )
    assert isinstance(recipe.teacher, HuggingFaceTeacher)  # the one kind whose tensors are here
    teacher = huggingface.load(recipe.teacher, model_source.teacher(recipe))
    said = _answers(recipe, workspace, teacher)
    train, vocabulary = said["train"], teacher.vocabulary
    facts: dict[str, Any] = _text_facts(train) | {
        "vocabulary": vocabulary,
        "responses": len(train.views),
        "tokens": train.tokens,
        "held_out_tokens": said["eval"].tokens,
        "steps": STEPS,
        "dense_bytes_per_token": 4 * vocabulary,
    }
    injection = np.random.default_rng(0).permutation(max(LARGE, vocabulary))[:vocabulary]
    held_out = _rows(said["eval"], vocabulary)
    students = {"dense": [_fit("dense", teacher.model, _rows(train, vocabulary), held_out)]}
    for name, spec in KINDS.items():
        profile: SoftLabelCodec = implementation(spec)(spec)
        students[name] = []
        for seed in DRAWN[:1] if name == "top_k_lumped" else DRAWN:
            labels = [profile.keep(train.exact(row), _generator(seed, row)) for row in range(len(train.views))]
            size, kept = _stored(recipe, train, labels, profile)
            if not students[name]:
                facts |= _label_facts(profile, kept) | {
                    f"{name}_bytes_per_token": size,
                    f"{name}_bytes_per_token_152k": _stored(recipe, train, labels, profile, injection)[0],
                }
            rows = _rows(train, vocabulary, profile, kept)
            students[name].append(_fit(f"{name}, seed {seed}", teacher.model, rows, held_out))
    [dense] = students["dense"]
    ratios = {f"{name}_kl_ratio": statistics.mean(found) / dense for name, found in students.items() if name != "dense"}
    return facts | ratios | {"students": students}


# ── what the teacher says ────────────────────────────────────────────────────────────────────────


def _answers(recipe: Recipe, workspace: Workspace, teacher: Teacher) -> dict[str, Said]:
    """The collected responses of both splits, up to `TOKENS`, and their whole distributions."""
    path, bare = workspace.folder("collect") / "views.parquet", TextLabels(Text())
    tables = {split: view_table.read(path, split) for split in TOKENS}
    chat = views.renderers(recipe, examples.load(recipe).shots)[CEILING].is_chat
    full = {split: [teacher.encode(text, chat=chat) for text in table.full] for split, table in tables.items()}
    every = [view for part in full.values() for view in part]
    shared = common_prefix(every)
    context = teacher.prepare_to_answer(every, shared, recipe.generate.max_new_tokens)
    skip = shared if context else 0
    found = {}
    for split, table in tables.items():
        own = dict(zip(table.id, full[split], strict=True))
        simplified = dict(zip(table.id, table.simplified, strict=True))
        kept = store.read(workspace, CEILING, split, bare)
        ends = np.cumsum([len(ids) for ids in kept.token_ids])
        count = max(1, int((ends <= TOKENS[split]).sum()))
        said = Said(
            [teacher.encode(simplified[row]) for row in kept.id[:count]],
            [
                Response(ids.tolist(), text, bool(cut), {})
                for ids, text, cut in zip(kept.token_ids[:count], kept.text, kept.cut, strict=False)
            ],
            [np.empty(0, np.float16)] * count,
        )
        with console.progress(f"score {split}", total=count) as bar:

            def keep(row: int, log_probs: Tensor, said: Said = said, bar: Any = bar) -> None:
                said.log_probs[row] = log_probs.numpy().astype(np.float16)
                bar.advance(1)

            views_of = [own[row][skip:] for row in kept.id[:count]]
            teacher.score_responses(views_of, [response.token_ids for response in said.responses], keep, context)
        found[split] = said
    return found


def _text_facts(said: Said) -> dict[str, float]:
    """Means over tokens: the teacher's entropy, and how much its own text surprises it (nats)."""
    entropy, surprise = 0.0, 0.0
    for row, response in enumerate(said.responses):
        log_probs = said.exact(row)
        entropy -= float((log_probs.exp() * log_probs.where(~log_probs.isneginf(), 0)).sum())
        surprise -= float(log_probs.gather(-1, torch.tensor(response.token_ids)[:, None]).sum())
    return {"entropy": entropy / said.tokens, "surprise": surprise / said.tokens}


# ── on disk ──────────────────────────────────────────────────────────────────────────────────────


def _stored(
    recipe: Recipe,
    said: Said,
    labels: list[dict[str, Any]],
    profile: SoftLabelCodec,
    injection: np.ndarray | None = None,
) -> tuple[float, Responses]:
    """(bytes of whole shards per response token, what is read back); ``injection``: other ids for the vocabulary's."""
    rows = [
        (f"{number:016x}", 0, replace(response, labels=kept))
        for number, (response, kept) in enumerate(zip(said.responses, labels, strict=True))
    ]
    if injection is not None:
        rows = [(name, sample, _renamed(response, injection)) for name, sample, response in rows]
    parts = [rows[start : start + recipe.shard_rows] for start in range(0, len(rows), recipe.shard_rows)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards = [
            Shard("full", "train", number, "0" * 16, [row for row, _, _ in part]) for number, part in enumerate(parts)
        ]
        for shard, part in zip(shards, parts, strict=True):
            store.write(folder, shard, part, profile)
        size = sum((folder / shard.file).stat().st_size for shard in shards)
        return size / said.tokens, store.read_shards(folder, shards, [row for row, _, _ in rows], profile)


def _renamed(response: Response, injection: np.ndarray) -> Response:
    labels = {
        name: [injection[part].astype(np.int32) for part in column] if name in ("ids", "tail_ids") else column
        for name, column in response.labels.items()
    }
    return replace(response, token_ids=injection[response.token_ids].tolist(), labels=labels)


def _label_facts(profile: SoftLabelCodec, found: Responses) -> dict[str, float]:
    """Of drawn tokens, how many are distinct; of the likeliest, what they capture."""
    if (mass := profile.captured_mass(found.labels)) is not None:
        return {"captured_mass_median": float(np.median(mass)), "captured_mass_p5": float(np.percentile(mass, 5))}
    return {"distinct_ids": float(Ragged.joined(found.labels["ids"]).lengths.mean())}


def _generator(seed: int, row: int) -> torch.Generator:
    state = np.random.SeedSequence([seed, row]).generate_state(1)
    return torch.Generator().manual_seed(int(state[0]))


# ── the student ──────────────────────────────────────────────────────────────────────────────────


def _rows(
    said: Said, vocabulary: int, profile: SoftLabelCodec | None = None, kept: Responses | None = None
) -> ResponseRows:
    """For training: the whole distributions, or what was kept of them."""

    def targets(some: Batch) -> Any:
        if profile is None or kept is None:
            return said.dense(some)
        labels = {name: [column[row] for row in some] for name, column in kept.labels.items()}
        return profile.targets(labels, [kept.token_ids[row] for row in some], None)

    return ResponseRows(said.views, [response.token_ids for response in said.responses], targets, vocabulary)


def _fit(name: str, teacher: PreTrainedModel, train: ResponseRows, held_out: ResponseRows) -> float:
    """Exact KL on the held-out rows, mean nats per token, of a student trained on ``train``.

    Its embeddings, and with them its head, stay the teacher's: so few tokens say little about so many rows.
    """
    torch.manual_seed(0)
    model = copy.deepcopy(teacher)
    depth = len(model.model.layers)
    keep_layers(model, tuple(sorted({*range(min(ENDS, depth)), *range(max(0, depth - ENDS), depth)})))
    model.get_input_embeddings().weight.requires_grad_(False)
    spec = Train(batch_rows=ROWS)
    problem = objective.Generation(train, held_out, (ForwardKL(),), spec)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE, fused=True)
    schedule = get_scheduler("linear", optimizer, STEPS // 10, STEPS)
    model.train()
    with console.progress(f"train on {name}", total=STEPS, unit="steps") as bar:
        for batch in _batches(problem.lengths):
            loss = problem.loss(model, batch) / sum(problem.positions[row] for row in batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            bar.advance(1, loss=f"{loss.item():.3f}")
    return problem.held_out(model)[1]["kl"]


def _batches(lengths: np.ndarray) -> list[list[int]]:
    """`STEPS` batches, the same for every student."""
    found: list[list[int]] = []
    epoch = 0
    while len(found) < STEPS:
        found += batching.shuffled(lengths, max_rows=ROWS, max_tokens=2**31, seed=0, epoch=epoch)
        epoch += 1
    return found[:STEPS]


# ── the table ────────────────────────────────────────────────────────────────────────────────────


def _print_table(found: dict[str, Any]) -> None:
    console.text(
        f"{found['responses']} responses, {found['tokens']} tokens; per token H(P) {found['entropy']:.2f} nats, "
        f"surprise of the text {found['surprise']:.2f}; 50 draws are {found['distinct_ids']:.1f} distinct ids; the 32 "
        f"likeliest hold {found['captured_mass_median']:.1%} (p5 {found['captured_mass_p5']:.1%})"
    )
    console.text("bytes are whole files, ids and text included; 152k: the same probabilities under ids up to 151,936")
    console.text(f"{'':13}{'B/token':>10}{'at 152k':>10}{'held-out KL':>14}{'ratio':>8}")
    dense = found["students"]["dense"][0]
    for name, kls in found["students"].items():
        keys = (f"{name}_bytes_per_token", f"{name}_bytes_per_token_152k")
        size = "".join(f"{found[key]:10.1f}" for key in keys if key in found)
        each = " (" + ", ".join(f"{kl / dense:.4f}" for kl in kls) + ")" if len(kls) > 1 else ""
        mean = statistics.mean(kls)
        console.text(f"{name:13}{size:20}{mean:14.4f}{mean / dense:8.4f}{each}")


if __name__ == "__main__":
    try:
        main()
    except UserFacingError as problem:
        console.error(problem)
        sys.exit(problem.exit_code)
