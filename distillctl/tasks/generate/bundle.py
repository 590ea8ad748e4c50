"""The bundle of a generating model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distillctl.bundle import code, contents, golden_example, ort_format, readme
from distillctl.bundle.builder import BundleBuilder
from distillctl.bundle.manifest import FolderFacts, Graph
from distillctl.data.view_table import ViewTable
from distillctl.errors import GateFailed
from distillctl.recipe import Recipe
from distillctl.run_dir.facts import DataFacts, Origin
from distillctl.runtimes import key_values, text_folder
from distillctl.runtimes.genai import CONFIG
from distillctl.runtimes.onnx_generator import open_generator
from distillctl.runtimes.onnx_seq2seq import OnnxSeq2Seq
from distillctl.runtimes.onnxruntime import session
from distillctl.runtimes.text_folder import read_json
from distillctl.snippets.reading import Reading
from distillctl.tasks.generate import card
from distillctl.tasks.generate.facts import GenerateTrain

ROWS = 8
"""The held-out rows that the `.ort` graphs answer, too."""


def fill(recipe: Recipe, draft: BundleBuilder, views: ViewTable) -> FolderFacts:
    """Write the bundle of a generating model, and return the stage's facts.

    Raise GateFailed unless the `.ort` graphs begin their answers as the ONNX graphs do.
    """
    folder, builder = draft.folder, draft.facts("export", Origin).builder
    train = draft.facts("train", GenerateTrain)
    converted = ort_format.convert(folder)
    agreed = _same_answers(draft, views) if converted else {}
    graphs = {
        name: Graph(
            takes="ids",
            format="ort" if name in converted else "onnx",
            against_onnx=agreed if name in converted else {},
        )
        for name in contents.graphs(folder, converted)
    }
    reading, begin = Reading.of(recipe, views, train, folder), text_folder.begin(folder)
    files = ["answer.py", "answer.mjs"] + ["answer_genai.py", "Writer.kt"] * (builder == "genai")
    known = card.known(recipe, builder, begin) | _known(folder, ".ort" if converted else ".onnx")
    code.write(folder, files, reading, name=recipe.name, **known)
    verdicts = draft.verdicts()
    about = card.description(draft.facts("collect", DataFacts), train)
    use = card.use(recipe, reading, builder, begin)
    text = readme.generate(
        recipe, reading, card.task(builder), about, use, draft.files(), verdicts, draft.figures("token")
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
    input_text, view = golden_example.candidates(recipe, reading)[0]
    example = golden_example.written(folder, input_text, view)
    return draft.close([], reading, train.max_length, graphs, example, verdicts)


def _known(folder: Path, suffix: str) -> dict[str, Any]:
    """Return the graphs' properties that JavaScript needs."""
    graph = open_generator(folder)
    encoder_decoder = isinstance(graph, OnnxSeq2Seq)
    decoder = "decoder_model_merged" if encoder_decoder else "model"
    genai = read_json(folder / CONFIG)
    head_size = genai["model"]["decoder"]["head_size"] if genai else None
    caches = key_values.caches(session(folder / f"{decoder}.onnx", 1), head_size)
    return {
        "graphs": {"decoder": f"{decoder}{suffix}", "encoder": f"encoder_model{suffix}"},
        "caches": [[name, cache.heads, cache.size] for name, cache in caches.items()],
        "start": graph.config["decoder_start_token_id"] if encoder_decoder else None,
        "ends": sorted(graph.stop_ids),
    }


def _same_answers(draft: BundleBuilder, views: ViewTable) -> dict[str, Any]:
    onnx, ort = (open_generator(draft.folder, suffix=suffix) for suffix in (".onnx", ".ort"))
    rows = list(zip(views.id, views.simplified, strict=True))[:ROWS]
    for row, view in rows:
        ids = onnx.encode(view)
        expected, actual = onnx.generate(ids, golden_example.TOKENS), ort.generate(ids, golden_example.TOKENS)
        if expected != actual:
            raise GateFailed(
                f"the .ort graphs answer {actual}, the ONNX ones {expected}; nothing is committed", where=f"row {row}"
            )
    return {"rows": len(rows), "same_answers": 1.0}
