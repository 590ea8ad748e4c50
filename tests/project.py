"""A whole project on disk: a tiny teacher, a tiny student, rows and a recipe; and the command line run on it."""

from __future__ import annotations

import functools
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from tests import forked_commands, tiny

LABELS = {"number": "many", "person": "who", "place": "where"}
CONTEXT = "book river king city live old long far of in a the " * 3


def make(folder: Path, rows: int = 160, **sections: Any) -> Path:
    """Write the project; returns the recipe's path. ``sections`` replace or (dicts) extend those of the recipe."""
    torch.manual_seed(0)
    teacher = AutoConfig.for_model(
        "llama", vocab_size=tiny.VOCABULARY, max_position_embeddings=128, initializer_range=0.4, hidden_size=32,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(teacher).save_pretrained(folder / "teacher")
    student = AutoConfig.for_model(
        "bert", vocab_size=tiny.VOCABULARY, max_position_embeddings=64, hidden_size=32, num_hidden_layers=2,
        num_attention_heads=2, intermediate_size=64, pad_token_id=0,
    )  # fmt: skip
    AutoModel.from_config(student).save_pretrained(folder / "student")
    for side in ("teacher", "student"):
        tiny.tokenizer().save_pretrained(folder / side)
    generator = np.random.default_rng(0)
    with (folder / "rows.jsonl").open("w") as file:
        for text in tiny.texts(rows):
            file.write(json.dumps({"input": text, "reference": str(generator.choice(list(LABELS)))}) + "\n")
    recipe: dict[str, Any] = {
        "name": "tiny",
        "task": {"labels": LABELS, "answer_prefix": " ", "prior": "batch"},
        "data": {"source": "rows.jsonl", "eval_rows": 40},
        "contexts": {
            "full": {"template": CONTEXT + "{% for e in examples %}{{ e.input }} {{ e.answer }} {% endfor %}{{ input }}",  # noqa: E501
                     "examples": {"rows": [{"input": "how many", "answer": "many"}]}},
            "arms": {"cue_only": {"template": "is {{ input }}"}},
        },
        "teacher": {"model": "teacher", "batch_tokens": 64, "threads": 1},
        "student": {"kind": "pretrained", "model": "student"},
        "shard_rows": 8,
        "train": {"epochs": 3, "batch_rows": 8, "learning_rate": 1e-3, "checkpoint_every": 5, "patience": 99,
                  "threads": 1},
        "bench": {"queries": 6, "processes": 2, "warmup": 0, "quantized_teacher": False},
        "quantize": {"gate": {"max_kl": 9, "min_same_top": 0, "max_score_drop": 1}},
    }  # fmt: skip
    for name, section in sections.items():
        recipe[name] = {**recipe[name], **section} if isinstance(section, dict) and name in recipe else section
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def command(*args: Any) -> list[str]:
    return [sys.executable, "-m", "distillctl", *map(str, args)]


def environment(**extra: str) -> Mapping[str, str]:
    return {**os.environ, "CI": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "120", "NO_COLOR": "1", **extra}


def run(
    *args: Any, prepare: Callable[[], None] | None = None, forked: bool = True, **extra: str
) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own.

    forked: a fork of a process that has imported what commands need will do, if ``extra`` has none of the variables
    that are read only when an interpreter starts or a library is imported. prepare: called before the command starts.
    """
    env, words = environment(**extra), tuple(map(str, args))
    if forked and forked_commands.takes(env):
        return forked_commands.run(words, env, prepare)
    return subprocess.run(
        command(*words),
        capture_output=True,
        text=True,
        timeout=forked_commands.SECONDS,
        env=env,
        preexec_fn=prepare,
        check=False,
    )


def small_files(size: int) -> Callable[[], None]:
    """No file may grow beyond ``size`` bytes: what a full disk looks like, by the kernel itself."""
    return functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, size))


def without_root_rights() -> None:
    """Drop CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, so that file permissions bind even root after the next exec."""
    import ctypes

    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        for capability in (1, 2):
            if libc.prctl(24, capability, 0, 0, 0):  # PR_CAPBSET_DROP
                raise OSError(ctypes.get_errno(), "prctl")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder``, but for the lock and the marker."""
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return {name: data for name, data in found.items() if name not in (".lock", ".distillctl-run.json")}
