"""make bench-peers: the deployed classifier against what optimum-cli makes of the untrimmed student, and each share.

The peer is the student that the recipe would have without trimming, trained alike (``--untrimmed``): `optimum-cli
export onnx`, then `optimum-cli onnxruntime quantize` with its int8 preset for this processor, in an environment of its
own. From there one thing changes at a time: our graph with the same int8, the quantization that our search chooses, the
vocabulary (``--trimmed``), and last the layers, which is the deployed model. All run in the same runtime, one thread,
from text to label, in fresh processes that take turns; a ratio is the median over the processes, in each of which both
answered the same rows. Agreement is with the teacher's labels on every held-out row. A student trained anew with
another seed differs by a point or so, more than the peer and the deployed model do: both are trained several times
(``--again``) and `agreement_delta` is the mean of the pairs' differences. Prints a table, then one JSON object.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic
from scipy.stats import sem

from distillctl import console
from distillctl import recipe as recipes
from distillctl.data import view_table
from distillctl.errors import UnavailableError
from distillctl.graphs import sidecar_files
from distillctl.metrics import scores
from distillctl.run_dir.workspace import Workspace
from distillctl.runtimes.interleaved import Plan, measure
from distillctl.runtimes.machine import describe as machine_facts
from distillctl.runtimes.onnxruntime import OnnxClassifier, graph_bytes
from distillctl.soft_labels import label_shards
from distillctl.soft_labels.labels import calibrate

PLAN = Plan(processes=5, queries=100, warmup=20, seconds=None)
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@dataclass(frozen=True)
class Step:
    """What changed, and the folder of the classifier that came of it."""

    name: str
    folder: Path


def main(
    recipe_path: Path,
    run_dir: Path,
    untrimmed: Path,
    trimmed: Path,
    optimum_cli: Path,
    again: Sequence[Sequence[Path]],
) -> None:
    """Build the peer, then compare. The three run directories have all stages up to quantize.

    again: pairs of run directories trained with another seed, as ``run_dir`` and, up to train, as ``untrimmed``.
    """
    recipe = recipes.load(recipe_path)
    deployed, whole, cut = (Workspace(path) for path in (run_dir, untrimmed, trimmed))
    texts, teacher = _held_out(deployed)

    def agreement(folder: Path) -> float:
        """The share of held-out rows with the label of the calibrated teacher."""
        return scores.same_top(teacher, OnnxClassifier(folder).logits(texts))

    with tempfile.TemporaryDirectory() as scratch:
        console.note("building the peer with optimum-cli")
        peer = _peer(whole.folder("train") / "model", Path(scratch), optimum_cli)
        steps = [
            Step("optimum-cli, its int8", peer),
            Step("+ our graph", _same_int8(whole.folder("export"), peer, Path(scratch) / "same")),
            Step("+ our quantization", whole.folder("quantize")),
            Step("+ trimmed vocabulary", cut.folder("quantize")),
            Step("+ fewer layers = deployed", deployed.folder("quantize")),
        ]
        agreements = [agreement(step.folder) for step in steps]
        pairs = [(agreements[-1], agreements[0])]
        for number, (ours, theirs) in enumerate(again, 2):
            console.note(f"the peer, trained with another seed: {number} of {len(again) + 1}")
            other = _peer(Workspace(theirs).folder("train") / "model", Path(scratch) / str(number), optimum_cli)
            pairs.append((agreement(Workspace(ours).folder("quantize")), agreement(other)))
        timed = _timed(steps, texts, recipe.seed)
    rows: list[dict[str, Any]] = [
        {
            "step": step.name,
            "p50_ms": timed[step.name]["p50_ms"],
            "speed_ratio": timed[step.name]["speed_ratio"],
            "bytes": timed[step.name]["bytes"],
            "size_ratio": timed[steps[0].name]["bytes"] / timed[step.name]["bytes"],
            "agreement": agreed,
        }
        for step, agreed in zip(steps, agreements, strict=True)
    ]
    _table(rows)
    differences = [ours - theirs for ours, theirs in pairs]
    delta, error = statistics.mean(differences), float(sem(differences))
    console.text(
        f"agreement, mean of {len(pairs)} trainings: deployed {statistics.mean(ours for ours, _ in pairs):.1%}, "
        f"optimum-cli {statistics.mean(theirs for _, theirs in pairs):.1%}, difference {delta:+.1%} ± {error:.1%}"
    )
    last = rows[-1]
    console.text(
        json.dumps(
            {
                "speed_ratio": last["speed_ratio"],
                "size_ratio": last["size_ratio"],
                "agreement_delta": delta,
                "agreement_delta_standard_error": error,
                "agreement_pairs": pairs,
                "steps": rows,
                "threads": 1,
                "queries": PLAN.processes * PLAN.queries,
                "machine": machine_facts().as_json(),
            }
        )
    )


# ── the peer ─────────────────────────────────────────────────────────────────────────────────────


def _peer(model: Path, scratch: Path, optimum_cli: Path) -> Path:
    """The trained student as optimum-cli exports and quantizes it, its graph under our runtime's name."""
    source, exported, quantized = (scratch / name for name in ("source", "exported", "quantized"))
    scratch.mkdir(exist_ok=True)
    shutil.copytree(model, source)
    sidecar_files.copy(model, source, INPUTS)  # a tokenizer class that its transformers knows
    preset = "--arm64" if machine_facts().architecture in ("aarch64", "arm64") else f"--{_instructions()}"
    _run([optimum_cli, "export", "onnx", "--model", source, "--task", "text-classification", exported])
    _run([optimum_cli, "onnxruntime", "quantize", "--onnx_model", exported, preset, "-o", quantized])
    (quantized / "model_quantized.onnx").replace(quantized / "model.onnx")
    return quantized


def _instructions() -> str:
    flags = machine_facts().flags
    return "avx512_vnni" if "avx512_vnni" in flags else "avx512" if "avx512f" in flags else "avx2"


def _run(command: list[Any]) -> None:
    try:
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    except OSError as error:
        raise UnavailableError(f"optimum-cli cannot be run: {error}", next="make bench-peers installs it") from None
    if done.returncode:
        raise UnavailableError("\n".join(["optimum-cli failed", *done.stderr.splitlines()[-8:]]), where=str(command[0]))


def _same_int8(source: Path, peer: Path, target: Path) -> Path:
    """Our graph under the operators, types and granularity that optimum's preset left in the peer's folder."""
    preset = json.loads((peer / "ort_config.json").read_text(encoding="utf-8"))["quantization"]
    shutil.copytree(source, target)
    quantize_dynamic(
        onnx.load(source / "model.onnx"),
        target / "model.onnx",
        op_types_to_quantize=preset["operators_to_quantize"],
        per_channel=preset["per_channel"],
        reduce_range=preset["reduce_range"],
        weight_type=QuantType[preset["weights_dtype"]],
        extra_options={"WeightSymmetric": preset["weights_symmetric"], "DefaultTensorType": onnx.TensorProto.FLOAT},
    )
    return target


# ── the comparison ───────────────────────────────────────────────────────────────────────────────


def _held_out(deployed: Workspace) -> tuple[list[str], np.ndarray]:
    """The students' views, and the calibrated teacher's label log-probabilities [N, K]."""
    collect = deployed.manifest("collect")
    assert collect is not None
    teacher = calibrate(label_shards.read(deployed, "full", "eval").log_probs, collect.facts["log_prior"])
    texts = view_table.read(deployed.folder("collect") / "views.parquet", "eval").simplified
    return texts, teacher


def _timed(steps: list[Step], texts: list[str], seed: int) -> Mapping[str, dict[str, float]]:
    """Of every step p50_ms, bytes, and the first step's p50 over its own."""
    order = np.resize(np.random.default_rng(seed).permutation(len(texts)), PLAN.rows)
    job = {"runtime": "onnx", "threads": 1, "texts": [texts[row] for row in order]}
    with console.progress("bench", PLAN.processes * PLAN.turns * len(steps), "turns") as bar:
        jobs = {step.name: job | {"folder": str(step.folder)} for step in steps}
        runs = measure(jobs, PLAN, lambda name: bar.advance(model=name))
    medians = {name: [statistics.median(run.milliseconds) for run in found] for name, found in runs.items()}
    peer = medians[steps[0].name]
    return {
        step.name: {
            "p50_ms": statistics.median(ms for run in runs[step.name] for ms in run.milliseconds),
            "bytes": graph_bytes(step.folder),
            "speed_ratio": statistics.median(a / b for a, b in zip(peer, medians[step.name], strict=True)),
        }
        for step in steps
    }


def _table(rows: list[dict[str, Any]]) -> None:
    console.text(f"one thread, {PLAN.processes} fresh processes of {PLAN.queries} queries each, in turns")
    console.text(f"{'':28}{'p50':>9}{'faster':>9}{'size':>10}{'smaller':>9}{'agreement':>11}")
    for row in rows:
        console.text(
            f"{row['step']:28}{row['p50_ms']:6.2f} ms{row['speed_ratio']:8.2f}×{row['bytes'] / 1e6:7.2f} MB"
            f"{row['size_ratio']:8.2f}×{row['agreement']:11.1%}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    for option in ("--run-dir", "--untrimmed", "--trimmed", "--optimum-cli"):
        parser.add_argument(option, type=Path, required=True)
    both = ("DEPLOYED", "UNTRIMMED")
    parser.add_argument("--again", type=Path, nargs=2, action="append", required=True, metavar=both)
    asked = parser.parse_args()
    main(asked.recipe, asked.run_dir, asked.untrimmed, asked.trimmed, asked.optimum_cli, asked.again)
