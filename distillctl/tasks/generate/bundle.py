"""What an app gets of a model that writes."""

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
"""Of the held-out ones, answered by the `.ort` graphs too."""


def fill(recipe: Recipe, made: BundleBuilder, views: ViewTable) -> FolderFacts:
    """Write the bundle of a model that writes. GateFailed unless the `.ort` graphs begin their answers as the ONNX
    graphs do."""
    folder, builder = made.folder, made.facts("export", Origin).builder
    train = made.facts("train", GenerateTrain)
    converted = ort_format.convert(folder)
    agreed = _same_answers(made, views) if converted else {}
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
    verdicts = made.verdicts()
    about = card.description(made.facts("collect", DataFacts), train)
    use = card.use(recipe, reading, builder, begin)
    text = readme.generate(
        recipe, reading, card.task(builder), about, use, made.files(), verdicts, made.figures("token")
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
    asked, view = golden_example.candidates(recipe, reading)[0]
    example = golden_example.written(folder, asked, view)
    return made.close([], reading, train.max_length, graphs, example, verdicts)


def _known(folder: Path, suffix: str) -> dict[str, Any]:
    """What JavaScript has to know of the graphs."""
    graph = open_generator(folder)
    encoder_decoder = isinstance(graph, OnnxSeq2Seq)
    decoder = "decoder_model_merged" if encoder_decoder else "model"
    genai = read_json(folder / CONFIG)
    head_size = genai["model"]["decoder"]["head_size"] if genai else None
    found = key_values.caches(session(folder / f"{decoder}.onnx", 1), head_size)
    return {
        "graphs": {"decoder": f"{decoder}{suffix}", "encoder": f"encoder_model{suffix}"},
        "caches": [[name, cache.heads, cache.size] for name, cache in found.items()],
        "start": graph.config["decoder_start_token_id"] if encoder_decoder else None,
        "ends": sorted(graph.stop_ids),
    }


def _same_answers(made: BundleBuilder, views: ViewTable) -> dict[str, Any]:
    onnx, ort = (open_generator(made.folder, suffix=suffix) for suffix in (".onnx", ".ort"))
    rows = list(zip(views.id, views.simplified, strict=True))[:ROWS]
    for row, view in rows:
        ids = onnx.encode(view)
        wanted, found = onnx.generate(ids, golden_example.TOKENS), ort.generate(ids, golden_example.TOKENS)
        if wanted != found:
            raise GateFailed(
                f"the .ort graphs answer {found}, the ONNX ones {wanted}; nothing is committed", where=f"row {row}"
            )
    return {"rows": len(rows), "same_answers": 1.0}
