"""make bench-search: what quantize finds, against every preset that treats all weights alike.

A run's own quantize stage runs once more, in a scratch folder, on the presets (dynamic int8, static int8 for labels,
float16, blocks of one precision) together with the recipe's candidates or the default ones. All answer the same
held-out rows in turns. Then the recipe's objective and gate choose twice: among the presets alone, and among all.
Prints a table per run, then one JSON object: `beats` says of each run whether the choice among all is none of the
presets and smaller without being slower, or faster; sizes and latencies that tie in the search (1 %, 10 %) tie here.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from distillctl import console
from distillctl import recipe as recipes
from distillctl.quantizers import search
from distillctl.recipe import CANDIDATES, DynamicInt8, Float16, Recipe, StaticInt8, WeightOnly
from distillctl.recipe.quantize import AnyQuantizer
from distillctl.run_dir.facts import Candidate, SearchFacts, StudentFacts
from distillctl.run_dir.workspace import Workspace
from distillctl.runtimes.machine import describe as machine_facts
from distillctl.stages import quantize as quantizing

DYNAMIC = tuple(
    DynamicInt8(per_channel=channel, reduce_range=reduced) for channel in (False, True) for reduced in (False, True)
)
STATIC = (StaticInt8(), StaticInt8(method="entropy"), StaticInt8(method="percentile"))
BLOCKS = (
    *(WeightOnly(algorithm=algorithm, block_size=size) for algorithm in ("rtn", "k_quant") for size in (32, 64)),
    WeightOnly(bits=8, algorithm="rtn", block_size=64),
    WeightOnly(bits=8, algorithm="rtn"),
)
PRESETS: dict[str, tuple[AnyQuantizer, ...]] = {
    "classifier": (*DYNAMIC, *STATIC, Float16(), *BLOCKS),
    "decoder": (Float16(), *BLOCKS),
    "encoder_decoder": (*DYNAMIC, Float16(), *BLOCKS),
}
"""Of decoders without dynamic int8: every token would round its whole vocabulary's table anew."""


def main(runs: list[tuple[Path, Path]]) -> None:
    """runs: recipe and run directory, with all stages up to export."""
    found = {}
    for path, folder in runs:
        recipe = recipes.load(path)
        console.note(f"{recipe.name}: presets and candidates")
        found[recipe.name] = _compared(recipe, Workspace(folder))
    beats = {name: one["beats"] for name, one in found.items()}
    console.text(json.dumps({"beats": beats, "runs": found, "threads": 1, "machine": machine_facts().as_json()}))


def _compared(recipe: Recipe, workspace: Workspace) -> dict[str, Any]:
    kind = _kind(recipe, workspace)
    presets = {spec.name: spec for spec in PRESETS[kind]}
    every = presets | {spec.name: spec for spec in recipe.quantize.candidates or CANDIDATES[kind]}
    quantize = recipe.quantize.model_copy(update={"candidates": tuple(every.values())})
    with tempfile.TemporaryDirectory() as scratch:
        for stage in ("collect", "train", "export"):
            (Path(scratch) / stage).symlink_to(workspace.folder(stage).resolve())
        facts = quantizing.run(recipe.model_copy(update={"quantize": quantize}), Workspace(Path(scratch))).facts
    judged = facts.part(SearchFacts).candidates
    best = search.choose([one for one in judged if one.name in presets], quantize.objective)
    chosen = search.choose(judged, quantize.objective)
    assert chosen is not None, "the stage chose one"
    _table(recipe, judged, chosen, best)
    return {
        "objective": quantize.objective,
        "beats": chosen.name not in presets and (best is None or _beats(chosen, best)),
        "chosen": _figures(chosen),
        "best_preset": None if best is None else _figures(best),
        "size_ratio": None if best is None else best.bytes / chosen.bytes,
        "speed_ratio": None if best is None else best.p50_ms / chosen.p50_ms,
        "candidates": [_figures(one) | {"preset": one.name in presets, "why": one.why} for one in judged],
    }


def _kind(recipe: Recipe, workspace: Workspace) -> str:
    if recipe.task.kind == "classify":
        return "classifier"
    return "encoder_decoder" if workspace.facts("train", StudentFacts).encoder_decoder else "decoder"


def _beats(one: Candidate, other: Candidate) -> bool:
    """Smaller without being slower, or faster."""
    smaller = one.bytes * (1 + search.SAME_SIZE) < other.bytes and one.p50_ms <= other.p50_ms * (1 + search.SAME_SPEED)
    return smaller or one.p50_ms * (1 + search.SAME_SPEED) < other.p50_ms


def _figures(one: Candidate) -> dict[str, Any]:
    return {key: getattr(one, key) for key in ("name", "bytes", "p50_ms", "kl", "same_top", "score", "inside")}


def _table(recipe: Recipe, judged: list[Candidate], chosen: Candidate, best: Candidate | None) -> None:
    told = {id(chosen): "chosen", id(best): "best preset"} if chosen is not best else {id(chosen): "chosen, a preset"}
    lines = [f"{recipe.name}: the {recipe.quantize.objective} inside the gate", ""]
    lines.append(f"{'':44}{'size':>10}{'p50':>11}{'KL':>9}{'same top':>10}")
    for one in judged:
        kl = "–" if one.kl is None else f"{one.kl:.4f}"
        verdict = told.get(id(one), "inside" if one.inside else f"outside: {one.why}")
        size, p50 = f"{one.bytes / 1e6:.2f} MB", f"{one.p50_ms:.2f} ms"
        lines.append(f"{one.name:44}{size:>10}{p50:>11}{kl:>9}{one.same_top:>10.1%}  {verdict}")
    console.text("\n".join([*lines, ""]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", nargs="+", metavar="RECIPE=RUN_DIR")
    pairs = [one.rsplit("=", 1) for one in parser.parse_args().run]
    main([(Path(path), Path(folder)) for path, folder in pairs])
