"""make bench-softlabels: what soft labels take on disk, and what a student loses that has only them.

The recipe's teacher answers train and eval rows greedily under its full context, and its whole distributions are kept
in memory. Of these the profiles are written as collect writes them: as they are, and once more with the same
probabilities under other ids, spread at random over a vocabulary of 151,936, which is as large as ids get in practice.
Then one small student is trained on the whole distributions, on the k likeliest tokens, and on drawn tokens (for
several seeds of the draws), always from the same weights on the same batches; what counts is its exact KL on eval rows.
Prints a table, then one JSON object.
"""

from __future__ import annotations

import json
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
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, get_scheduler

from distillctl import console, references
from distillctl import recipe as recipes
from distillctl.data import batching, examples, views
from distillctl.data.responses import clean
from distillctl.data.views import CEILING, FLOOR
from distillctl.losses.targets import DenseTargets
from distillctl.recipe import ForwardKL, Recipe, Sampled, TopK, Train, implementation
from distillctl.soft_labels import responses as store
from distillctl.soft_labels.ragged import Ragged
from distillctl.soft_labels.responses import Profile, Response, Responses
from distillctl.soft_labels.shards import Shard
from distillctl.teachers import arms as teacher_arms
from distillctl.teachers.huggingface import Teacher
from distillctl.training import generation
from distillctl.training.response_rows import ResponseRows

TOKENS = {"train": 6000, "eval": 1500}
"""Response tokens at least; 96 KiB of memory each at a vocabulary of 49,152, in half precision."""
AT_ONCE = 32
"""Rows answered at a time."""
LARGE = 151_936
DRAWN = (0, 1, 2)
"""Seeds of the draws."""
STEPS, ROWS, LEARNING_RATE = 250, 8, 2e-3
SIZES: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2} | {
    "num_attention_heads": 4, "num_key_value_heads": 4, "tie_word_embeddings": True
}  # fmt: skip


@dataclass(frozen=True)
class Said:
    """Answered rows: the student's view of each, what was said, and all log-probabilities there, float16 [T, V]."""

    views: list[list[int]]
    responses: list[Response]
    log_probs: list[np.ndarray]

    @property
    def tokens(self) -> int:
        return sum(len(response.token_ids) for response in self.responses)

    def dense(self, rows: Sequence[int]) -> DenseTargets:
        """All positions of some rows. Rounding a logarithm to half precision changes a probability by 2^−11 log p."""
        token_ids = [token for row in rows for token in self.responses[row].token_ids]
        return DenseTargets(torch.tensor(token_ids), torch.cat([self.exact(row) for row in rows]))

    def exact(self, row: int) -> Tensor:
        """Normalised log-probabilities float32 [T, V] of one row."""
        return torch.from_numpy(self.log_probs[row]).float().log_softmax(-1)


def main(path: str) -> None:
    """Measure the recipe's teacher."""
    recipe = recipes.load(Path(path))
    source = references.teacher(recipe)
    teacher: Teacher = implementation(recipe.teacher)(recipe.teacher, source)
    said = _answers(recipe, teacher)
    facts = _text_facts(said["train"])
    injection = np.random.default_rng(0).permutation(LARGE)[: teacher.vocabulary]
    specs = {"top_k": TopK(k=32), "sampled": Sampled(draws=50)}
    sizes: dict[str, list[float]] = {}
    students = {"dense": [_fit("dense", _rows(said["train"], teacher.vocabulary), said["eval"], teacher.vocabulary)]}
    for name, spec in specs.items():
        profile: Profile = implementation(spec)(spec)
        seeds = DRAWN if name == "sampled" else DRAWN[:1]
        students[name] = []
        for seed in seeds:
            labels = [
                profile.keep(said["train"].exact(row), _generator(seed, row)) for row in range(len(said["train"].views))
            ]
            size, found = _stored(recipe, said["train"], labels, profile)
            if seed == seeds[0]:
                sizes[name] = [size, _stored(recipe, said["train"], labels, profile, injection)[0]]
                facts |= _label_facts(profile, found)
            rows = _rows(said["train"], teacher.vocabulary, profile, found)
            students[name].append(_fit(f"{name}, seed {seed}", rows, said["eval"], teacher.vocabulary))
    _print(said, facts, sizes, students, teacher.vocabulary)


# ── what the teacher says ────────────────────────────────────────────────────────────────────────


def _answers(recipe: Recipe, teacher: Teacher) -> dict[str, Said]:
    """Rows of both splits, answered until there are `TOKENS`."""
    dataset = examples.load(recipe)
    renderers = views.renderers(recipe, dataset.shots)
    longest = recipe.generate.max_new_tokens
    full, simplified = teacher_arms.arms(
        recipe, teacher, dataset, {name: renderers[name] for name in (CEILING, FLOOR)}, answer_tokens=longest
    )
    context = teacher.prepare_to_answer(full.every, full.shared, longest)
    skip = full.shared if context else 0
    stop = teacher.stop_ids(recipe.generate.stop)
    found = {}
    for split, wanted in TOKENS.items():
        said = Said([], [], [])
        with console.progress(f"answer {split}", total=wanted) as bar:
            for start in range(0, len(full.ids[split]), AT_ONCE):
                part = slice(start, start + AT_ONCE)
                answers = teacher.answer(
                    [view[skip:] for view in full.ids[split][part]],
                    context,
                    stop=stop,
                    max_new_tokens=longest,
                    keep=lambda log_probs, _: {"log_probs": log_probs.numpy().astype(np.float16)},
                )
                for text, (answer,) in zip(simplified.text[split][part], answers, strict=True):
                    written = teacher.tokenizer.decode(answer.token_ids, skip_special_tokens=True)
                    said.views.append(teacher.encode(text))
                    said.responses.append(
                        Response(answer.token_ids, clean(written, recipe.generate.stop), answer.cut, {})
                    )
                    said.log_probs.append(np.asarray(answer.labels["log_probs"]))
                    bar.advance(len(answer.token_ids))
                if said.tokens >= wanted:
                    break
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
    recipe: Recipe, said: Said, labels: list[dict[str, Any]], profile: Profile, injection: np.ndarray | None = None
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
    ids = [injection[part].astype(np.int32) for part in response.labels["ids"]]
    return replace(response, token_ids=injection[response.token_ids].tolist(), labels=response.labels | {"ids": ids})


def _label_facts(profile: Profile, found: Responses) -> dict[str, float]:
    """Of drawn tokens, how many are distinct; of the likeliest, what they capture."""
    if (mass := profile.captured_mass(found.labels)) is not None:
        return {"captured_mass_median": float(np.median(mass)), "captured_mass_p5": float(np.percentile(mass, 5))}
    return {"distinct_ids": float(Ragged.joined(found.labels["ids"]).lengths.mean())}


def _generator(seed: int, row: int) -> torch.Generator:
    state = np.random.SeedSequence([seed, row]).generate_state(1)
    return torch.Generator().manual_seed(int(state[0]))


# ── the student ──────────────────────────────────────────────────────────────────────────────────


def _rows(said: Said, vocabulary: int, profile: Profile | None = None, kept: Responses | None = None) -> ResponseRows:
    """For training: the whole distributions, or what was kept of them."""

    def targets(some: Sequence[int]) -> Any:
        if profile is None or kept is None:
            return said.dense(some)
        labels = {name: [column[row] for row in some] for name, column in kept.labels.items()}
        return profile.targets(labels, [kept.token_ids[row] for row in some], None)

    return ResponseRows(said.views, [response.token_ids for response in said.responses], targets, vocabulary)


def _fit(name: str, train: ResponseRows, held_out: Said, vocabulary: int) -> float:
    """Exact KL on the held-out rows, mean nats per token, of a student trained on ``train``."""
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=vocabulary, **SIZES))
    spec = Train(batch_rows=ROWS)
    problem = generation.Generation(train, _rows(held_out, vocabulary), (ForwardKL(),), spec)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
    schedule = get_scheduler("linear", optimizer, STEPS // 10, STEPS)
    model.train()
    with console.progress(f"train on {name}", total=STEPS) as bar:
        for batch in _batches(problem.lengths):
            loss = problem.loss(model, batch) / sum(problem.positions[row] for row in batch)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            bar.advance(1, loss=f"{loss.item():.3f}")
    return problem.held_out(model)[1]["kl"]


def _batches(lengths: Sequence[int]) -> list[list[int]]:
    """`STEPS` batches, the same for every student."""
    found: list[list[int]] = []
    epoch = 0
    while len(found) < STEPS:
        found += batching.shuffled(lengths, max_rows=ROWS, max_tokens=2**31, seed=0, epoch=epoch)
        epoch += 1
    return found[:STEPS]


# ── the table ────────────────────────────────────────────────────────────────────────────────────


def _print(
    said: dict[str, Said],
    facts: dict[str, float],
    sizes: dict[str, list[float]],
    students: dict[str, list[float]],
    vocabulary: int,
) -> None:
    train = said["train"]
    console.text(
        f"{len(train.views)} responses, {train.tokens} tokens; per token H(P) {facts['entropy']:.2f} nats, surprise of the "
        f"text {facts['surprise']:.2f} nats; 50 draws are {facts['distinct_ids']:.1f} distinct ids; the 32 likeliest hold "
        f"{facts['captured_mass_median']:.1%} (p5 {facts['captured_mass_p5']:.1%})"
    )
    console.text(
        f"the same probabilities under ids spread over {LARGE:,}; bytes are whole files, ids and text included"
    )
    console.text(f"{'':10}{'B/token':>10}{f'at {LARGE:,}':>12}{'held-out KL':>14}{'ratio':>8}")
    [dense] = students["dense"]
    ratios = {name: [kl / dense for kl in found] for name, found in students.items()}
    for name, found in students.items():
        size = "".join(f"{value:{width}.1f}" for value, width in zip(sizes.get(name, []), (10, 12), strict=False))
        spread = " (" + ", ".join(f"{ratio:.4f}" for ratio in ratios[name]) + ")" if len(found) > 1 else ""
        console.text(f"{name:10}{size:>22}{statistics.mean(found):14.4f}{statistics.mean(ratios[name]):8.4f}{spread}")
    figures = {
        "sampled_bytes_per_token": sizes["sampled"][0],
        "top_k_bytes_per_token": sizes["top_k"][0],
        "sampled_kl_ratio": statistics.mean(ratios["sampled"]),
        "top_k_kl_ratio": ratios["top_k"][0],
        "sampled_kl_ratios": ratios["sampled"],
        "sampled_bytes_per_token_152k": sizes["sampled"][1],
        "top_k_bytes_per_token_152k": sizes["top_k"][1],
        "dense_bytes_per_token": 4 * vocabulary,
        "held_out_kl": dense,
        "vocabulary": vocabulary,
        "tokens": train.tokens,
        "held_out_tokens": said["eval"].tokens,
        "steps": STEPS,
    } | facts
    console.text(json.dumps(figures))


if __name__ == "__main__":
    main(sys.argv[1])
