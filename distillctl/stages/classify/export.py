"""export: the student as ONNX, checked against PyTorch on real rows."""

from __future__ import annotations

from dataclasses import asdict

from distillctl import console
from distillctl.data import view_table
from distillctl.graphs import exporter, parity, sidecar_files
from distillctl.graphs.parity import Parity
from distillctl.graphs.tracing import ExportedGraph
from distillctl.model_card import frame
from distillctl.recipe import Recipe
from distillctl.run_dir.workspace import StageOutput, Workspace, replacing_folder
from distillctl.runtimes.onnxruntime import OnnxClassifier
from distillctl.snippets.reading import Reading
from distillctl.students import load_trained


def run(recipe: Recipe, workspace: Workspace) -> StageOutput:
    """Nothing is committed unless ONNX Runtime and PyTorch agree on every eval row (GateFailed)."""
    views = view_table.read(workspace.folder("collect") / "views.parquet", "eval")
    source = workspace.folder("train") / "model"
    with replacing_folder(workspace.folder("export")) as staged:
        model = load_trained.model(recipe, source)
        console.note("export: tracing")
        graph = exporter.export(model, staged, recipe.export.opset, fuse=recipe.export.fuse)
        sidecar_files.copy(source, staged, graph.inputs)
        found = parity.check(
            model, OnnxClassifier(staged), views.id, views.simplified, recipe.export.max_logit_difference
        )
        if found.ties:
            console.warn(f"on {found.ties} rows the two highest logits tie, and ONNX Runtime takes the other one")
        collect, train = (m.facts for name in ("collect", "train") if (m := workspace.manifest(name)))
        reading = Reading.of(recipe, views, train, staged)
        text = frame.render(recipe, collect, train, reading, [_measured(graph, found)])
        (staged / "README.md").write_text(text, encoding="utf-8")
        outputs = sorted(path.name for path in staged.iterdir())
    return StageOutput(outputs, asdict(graph) | asdict(found))


def _measured(graph: ExportedGraph, found: Parity) -> dict[str, str]:
    return {
        "graph": "fp32",
        "size": f"{graph.bytes / 1e6:.2f} MB",
        "max logit difference from PyTorch": f"{found.max_logit_difference:.1e}",
        "same top label": f"{found.same_top:.2%}",
        "rows": f"{found.rows:,}",
    }
