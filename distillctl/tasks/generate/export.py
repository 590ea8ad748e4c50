"""The generating student as ONNX, checked against PyTorch on real rows: logits, and greedy answers."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedModel

from distillctl import console
from distillctl.data.view_table import ViewTable
from distillctl.graphs import decoder_trace, genai_builder, seq2seq, sidecar_files, tracing
from distillctl.recipe import Recipe, Text, implementation
from distillctl.run_dir.facts import GraphFacts
from distillctl.run_dir.workspace import Workspace
from distillctl.runtimes.onnx_generator import OnnxGenerator, open_generator
from distillctl.soft_labels import response_shards
from distillctl.students import load_trained
from distillctl.tasks.base import BoundTask, Exported
from distillctl.tasks.generate import parity
from distillctl.tasks.generate.facts import GenerateExport, GenerateTrain
from distillctl.tasks.generate.parity import ParityRows


def export(task: BoundTask, source: Path, staged: Path, table: ViewTable) -> Exported:
    """Write the graphs of the student in ``source``. GateFailed unless they answer as PyTorch does."""
    recipe = task.recipe
    train = task.workspace.facts("train", GenerateTrain)
    builder, graph, model = _build(recipe, source, staged, train)
    sidecar_files.copy(source, staged, ["input_ids", "attention_mask"], max_length=train.max_length)
    generator = open_generator(staged, torch.get_num_threads())
    measured = parity.check_parity(
        model,
        generator,
        _rows(recipe, task.workspace, table, source, generator),
        allowed=recipe.export.max_logit_difference,
        prompts=recipe.export.prompts,
        max_new_tokens=recipe.generate.max_new_tokens,
    )
    if measured.ties:
        console.warn(f"{measured.ties} answers part from PyTorch's where two logits tie")
    agreement = {
        "max logit difference from PyTorch": f"{measured.max_logit_difference:.1e} of the largest logit",
        "rows": f"{measured.rows:,}",
        "same answer as PyTorch": f"{measured.equal_prompts} of {measured.prompts}",
    }
    facts = GenerateExport(architecture=type(model).__name__, builder=builder, **measured.given)
    return Exported(graph, agreement, graph | facts, builder)


def _build(recipe: Recipe, source: Path, staged: Path, train: GenerateTrain) -> tuple[str, GraphFacts, PreTrainedModel]:
    """Return the graph's builder, the graph, and the PyTorch model."""
    opset = recipe.export.opset
    if train.encoder_decoder:
        model = load_trained.model(recipe, source)
        console.note("export: tracing encoder and decoder")
        return "seq2seq", seq2seq.export(model, staged, opset), model
    graph = None if recipe.export.builder == "trace" else _genai(recipe, source, staged, train)
    model = load_trained.model(recipe, source)  # after the builder, which has loaded its own
    if graph is not None:
        return "genai", graph, model
    console.note("export: tracing")
    return "trace", decoder_trace.export(model, staged, opset, train.max_length), model


def _genai(recipe: Recipe, source: Path, staged: Path, train: GenerateTrain) -> GraphFacts | None:
    """Build the graph with onnxruntime-genai's builder. Return None where that fails and the recipe does not need
    it."""
    needed, opset = recipe.export.builder == "genai", recipe.export.opset
    if opset is not None and not needed:
        return None  # the builder has an opset of its own
    console.note("export: building")
    try:
        graph = genai_builder.export(
            source, staged, train.stop_ids, train.max_length, trust_remote_code=load_trained.trusted(recipe)
        )
    except genai_builder.UnsupportedByBuilder as error:
        if needed:
            raise
        console.note(f"export: {error.what}")
        return None
    tracing.check_opset(graph.opset, opset)
    return graph


def _rows(recipe: Recipe, workspace: Workspace, table: ViewTable, source: Path, graph: OnnxGenerator) -> ParityRows:
    """Return the eval rows: simplified views, and the teacher's responses in the student's tokens."""
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=load_trained.trusted(recipe))
    views = parity.views(graph, tokenizer, table.id, table.simplified)
    responses = response_shards.read(workspace, "full", "eval", implementation(Text())(Text()))
    stop, limit = min(graph.stop_ids), recipe.generate.max_new_tokens
    encoded = [[*graph.tokenizer.encode(text, add_special_tokens=False).ids, stop][:limit] for text in responses.text]
    return ParityRows(table.id, views, encoded)
