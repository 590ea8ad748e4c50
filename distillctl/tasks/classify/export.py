"""The classifier as ONNX, checked against PyTorch on real rows."""

from __future__ import annotations

from pathlib import Path

from distillctl import console
from distillctl.data.view_table import ViewTable
from distillctl.graphs import exporter, sidecar_files
from distillctl.runtimes.onnxruntime import OnnxClassifier
from distillctl.students import load_trained
from distillctl.tasks.base import BoundTask, Exported
from distillctl.tasks.classify import parity


def export(task: BoundTask, model: Path, staged: Path, views: ViewTable) -> Exported:
    """Write the graph of the student in ``model``. GateFailed unless it answers as PyTorch does."""
    student = load_trained.model(task.recipe, model)
    console.note("export: tracing")
    spec = task.recipe.export
    graph = exporter.export(student, staged, spec.opset, fuse=spec.fuse)
    sidecar_files.copy(model, staged, graph.inputs)
    measured = parity.check_parity(
        student, OnnxClassifier(staged), views.id, views.simplified, spec.max_logit_difference
    )
    if measured.ties:
        console.warn(f"on {measured.ties} rows the two highest logits tie, and ONNX Runtime takes the other one")
    agreement = {
        "max logit difference from PyTorch": f"{measured.max_logit_difference:.1e}",
        "same top label": f"{measured.same_top:.2%}",
        "rows": f"{measured.rows:,}",
    }
    return Exported(graph, agreement, graph | measured)
