"""One process of `benchmarks.memory`: makes what a stage reads, or runs a stage and says what it took.

python -m tests.benchmarks.memory_worker prepare FOLDER ROWS STAGE…
python -m tests.benchmarks.memory_worker measure FOLDER ROWS STAGE
"""

from __future__ import annotations

import functools
import importlib
import itertools
import json
import resource
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from distillctl import console
from distillctl import recipe as recipes
from distillctl.recipe import Recipe, Spec, Text, implementation
from distillctl.run_dir.facts import Facts
from distillctl.run_dir.workspace import StageOutput, Workspace

EVAL_ROWS, SHARD_ROWS = 200, 128
LABELS = ["river", "harbour", "mountain", "garden"]
SYLLABLES = ["ba", "co", "di", "fu", "ge", "ha", "li", "mo", "nu", "pe", "ri", "sa", "to", "vu", "we", "zo"]
WORDS = [a + b + c for a in SYLLABLES[:8] for b in SYLLABLES[8:] for c in ("", "n", "r", "s")]
ANSWERS, ANSWER_TOKENS = 512, 16
"""Drawn responses, which the rows have in turn, and their longest."""


def main(arguments: list[str]) -> None:
    """What the command line says."""
    console.configure(verbosity=-1)
    what, folder, rows, *stages = arguments
    if what == "prepare":
        prepare(Path(folder), int(rows), stages)
    else:
        console.text(str(measure(Path(folder), int(rows), stages[0])))


def measure(folder: Path, rows: int, stage: str) -> int:
    """Run the stage; the peak RSS of this process in bytes."""
    name, kind = stage.split("/")
    here = folder / str(rows) / kind
    loaded, workspace = recipes.load(here / "recipe.yaml"), Workspace(here / ("drawn" if name == "train" else "run"))
    shutil.rmtree(workspace.folder(name), ignore_errors=True)
    importlib.import_module(f"distillctl.stages.{name}").run(loaded, workspace)
    return peak_rss()


def peak_rss() -> int:
    """Bytes; of this program alone where the kernel says so (what it was started from counts in ru_maxrss)."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# ── what the stages read ─────────────────────────────────────────────────────────────────────────


def prepare(folder: Path, rows: int, stages: list[str]) -> None:
    """Teacher, rows, recipes, and for train what collect would have left."""
    if not (folder / "teacher").exists():
        _teacher(folder / "teacher")
    for kind in sorted({stage.split("/")[1] for stage in stages}):
        here = folder / str(rows) / kind
        here.mkdir(parents=True, exist_ok=True)
        with (here / "rows.jsonl").open("w", encoding="utf-8") as file:
            for text, reference in _rows(rows, kind):
                file.write(json.dumps({"input": text, "reference": reference}) + "\n")
        (here / "recipe.yaml").write_text(yaml.safe_dump(_recipe(folder, kind)), encoding="utf-8")
        if f"train/{kind}" in stages:
            _collected(recipes.load(here / "recipe.yaml"), Workspace(here / "drawn"), rows)


def _rows(count: int, kind: str) -> Iterator[tuple[str, str]]:
    """Distinct inputs of 12 to 24 words, and their references."""
    generator = np.random.default_rng(0)
    for number in range(count):
        words = generator.choice(WORDS, generator.integers(11, 24))
        reference = str(generator.choice(LABELS)) if kind == "labels" else " ".join(words[:3])
        yield f"{number} {' '.join(words)}", reference


def _recipe(folder: Path, kind: str) -> dict[str, Any]:
    context = " ".join(itertools.islice(itertools.cycle(WORDS), 150))
    task: dict[str, Any] = {"labels": LABELS, "prior": "batch"}
    if kind == "texts":
        soft_labels = {"kind": "top_k", "k": 16, "tail_draws": 0}
        task = {"kind": "generate", "max_new_tokens": 4, "metrics": ["exact"], "soft_labels": soft_labels}
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    student = {**sizes, "max_position_embeddings": 256, **({"num_key_value_heads": 2} if kind == "texts" else {})}
    return {
        "name": f"memory-{kind}",
        "task": task,
        "data": {"source": "rows.jsonl", "eval_rows": EVAL_ROWS},
        "contexts": {"full": {"template": context + " {{ input }} :"}, "simplified": {"template": "{{ input }} :"}},
        "teacher": {"model": str(folder / "teacher"), "threads": 1},
        "student": {
            "kind": "from_config",
            "model_type": "llama" if kind == "texts" else "bert",
            "tokenizer": str(folder / "teacher"),
            "config": student,
        },
        "shard_rows": SHARD_ROWS,
        "train": {"epochs": 1, "validation": 0.02, "threads": 1},
    }


def _teacher(folder: Path) -> None:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=["<pad>", "<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([" " + word for word in [*WORDS, *LABELS]], trainer)
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>").save_pretrained(folder)
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama", vocab_size=512, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=64, max_position_embeddings=2048, bos_token_id=1, eos_token_id=1, pad_token_id=0,
        initializer_range=0.3,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def _collected(recipe: Recipe, workspace: Workspace, rows: int) -> None:
    """What collect leaves, but that nobody was asked: the views, and soft labels drawn at random."""
    from transformers import AutoTokenizer

    from distillctl.data import examples, view_table, views
    from distillctl.soft_labels.shards import Shard
    from distillctl.students.vocabulary import vocabulary_digest

    dataset, folder = examples.load(recipe), workspace.folder("collect")
    renderers = views.renderers(recipe, dataset.shots)
    tables = {
        split: view_table.ViewTable(
            [e.id for e in part],
            [e.input for e in part],
            [e.reference for e in part],
            *([renderers[name].preview(e) for e in part] for name in ("full", "simplified")),
        )
        for split, part in dataset.splits.items()
    }
    view_table.write(folder / "views.parquet", tables)
    write = _write_labels if recipe.task.kind == "classify" else _write_texts
    for arm, split in (("full", "train"), ("full", "eval"), ("simplified", "eval")):
        for number, start in enumerate(range(0, len(tables[split].id), SHARD_ROWS)):
            ids = tables[split].id[start : start + SHARD_ROWS]
            write(recipe, folder, Shard(arm, split, number, "0" * 16, ids))
    tokenizer = AutoTokenizer.from_pretrained(recipe.teacher.model)
    facts: dict[str, Any] = {
        "counts": {split: len(table.id) for split, table in tables.items()},
        "context_tokens": {"teacher": 1, "student": 1},
        "teacher": {"reference": recipe.teacher.model},
        "teacher_tokenizer": vocabulary_digest(tokenizer),
        "metric": "accuracy",
        "labels": LABELS,
        "log_prior": None,
        "stop_ids": [1],
        "vocabulary": len(tokenizer),
    }
    outcome = StageOutput(["views.parquet", "shards"], Facts.model_validate(facts))
    workspace.commit("collect", recipe={}, inputs={}, outcome=outcome, seed=0, seconds=0.0)


def _write_labels(recipe: Recipe, folder: Path, shard: Any) -> None:
    from distillctl.soft_labels import label_shards

    generator = np.random.default_rng(shard.index)
    log_probs = np.log(generator.dirichlet(np.ones(len(LABELS)), len(shard.ids))).astype(np.float32) - 1
    label_shards.write(folder, shard, label_shards.SoftLabels(shard.ids, log_probs, np.exp(log_probs).sum(-1)))


def _write_texts(recipe: Recipe, folder: Path, shard: Any) -> None:
    from distillctl.soft_labels import response_shards

    spec = recipe.generate.kept(shard.split) if shard.arm == "full" else Text()
    drawn = _answers(spec)
    rows = [(row, 0, drawn[(shard.index + place) % len(drawn)]) for place, row in enumerate(shard.ids)]
    response_shards.write(folder, shard, rows, implementation(spec)(spec))


@functools.cache
def _answers(soft_labels: Spec) -> list[Any]:
    """Responses with what the profile keeps of random distributions."""
    import torch

    from distillctl.data.responses import Response

    profile, generator = implementation(soft_labels)(soft_labels), torch.Generator().manual_seed(0)
    made = []
    for _ in range(ANSWERS):
        length = int(torch.randint(4, ANSWER_TOKENS, (), generator=generator))
        log_probs = torch.randn(length, 512, generator=generator).mul(2).log_softmax(-1)
        ids = [*torch.randint(2, 512, (length - 1,), generator=generator).tolist(), 1]
        text = " ".join(WORDS[token % len(WORDS)] for token in ids)
        made.append(Response(ids, text, False, profile.keep(log_probs, generator)))
    return made


if __name__ == "__main__":
    main(sys.argv[1:])
