"""The graphs that `decode` times: ours, and what onnxruntime-genai's builder makes of the same model."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, GenerationConfig

from distillctl import console
from distillctl import recipe as recipes
from distillctl.data import examples
from distillctl.graphs import genai_builder, sidecar_files
from distillctl.losses.targets import Targets
from distillctl.models import from_pretrained, model_source
from distillctl.quantizers import search
from distillctl.recipe import WeightOnly
from distillctl.runtimes.onnx_decoder import OnnxDecoder
from distillctl.runtimes.onnxruntime import graph_bytes
from distillctl.tasks.generate import quantization
from distillctl.tasks.generate.response_rows import ResponseRows

_MAX_LENGTH = 2048


@dataclass(frozen=True)
class Built:
    """folders: of `fp32`, `own` and `genai`; gguf: the file the model came from, if it was one; views: real rows, in
    the model's chat template."""

    folders: dict[str, Path]
    gguf: Path | None
    views: list[str]


def build(recipe_path: Path, scratch: Path, spec: WeightOnly) -> Built:
    """From the teacher of a recipe, whose eval rows are the ones to compare on."""
    recipe = recipes.load(recipe_path)
    model = model_source.teacher(recipe)
    source = Path(from_pretrained.folder(model))
    folders = {name: scratch / name for name in (search.FP32, "genai")}
    folders[search.FP32].mkdir()
    console.note("building fp32")
    stop = GenerationConfig.from_pretrained(source).eos_token_id
    genai_builder.export(source, folders[search.FP32], stop if isinstance(stop, list) else [stop], _MAX_LENGTH)
    console.note(f"quantizing: {spec.name}")
    (scratch / "candidates").mkdir()
    _beside(source, folders[search.FP32])
    folders["own"] = search.build([spec], folders[search.FP32], scratch / "candidates").folders[spec.name]
    console.note("building int4 as onnxruntime-genai does")
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(source), "-o", str(folders["genai"])]
    options = ["-p", "int4", "-e", "cpu", "-c", str(scratch / "cache"), "--extra_options", "hf_token=false"]
    subprocess.run([*command, *options], check=True, capture_output=True)
    _beside(source, folders["genai"])
    gguf = model.path if model.path is not None and model.path.suffix == ".gguf" else None
    tokenizer = AutoTokenizer.from_pretrained(source)
    views: list[Any] = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": example.input}], tokenize=False, add_generation_prompt=True
        )
        for example in examples.load(recipe).eval
    ]
    return Built(folders, gguf, views)


def quality(built: Built, rows: int, tokens: int) -> dict[str, dict[str, float]]:
    """Of `own` and `genai`: KL(fp32 ‖ it), nats per token of fp32's greedy answers of at most ``tokens`` tokens, the
    share of tokens with its top one, and the graph's bytes."""
    graphs = {name: OnnxDecoder(folder, torch.get_num_threads()) for name, folder in built.folders.items()}
    fp32 = graphs[search.FP32]
    views = [fp32.encode(view) for view in built.views[:rows]]
    answers = [fp32.generate(view, tokens) for view in views]
    held_out = ResponseRows(
        views, answers, lambda some: Targets(torch.tensor([t for row in some for t in answers[row]])), 2**31
    )
    forced = {name: found.forced for name, found in quantization.measure(graphs, held_out, 1).items()}
    compared = [name for name in graphs if name != search.FP32]
    sizes: dict[str, float] = {name: graph_bytes(built.folders[name]) for name in compared}
    if built.gguf is not None:
        sizes["llama_cpp"] = built.gguf.stat().st_size
    return {
        "kl": {name: forced[name].mean(forced[name].kl) for name in compared},
        "same_top": {name: forced[name].mean(forced[name].same_top) for name in compared},
        "bytes": sizes,
    }


def _beside(source: Path, folder: Path) -> None:
    sidecar_files.copy(source, folder, ["input_ids", "attention_mask"], max_length=_MAX_LENGTH)
