"""Collect a bundle's files, and describe each of them."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from distillctl.bundle import archive, code, model_card, ort_format, text_in
from distillctl.bundle.manifest import NAME, File
from distillctl.errors import DistillctlError
from distillctl.models import model_source
from distillctl.recipe import Recipe
from distillctl.run_dir.workspace import file_digest
from distillctl.runtimes import drafts
from distillctl.untrusted import limits, markdown

_OF_THE_STAGE = {"README.md", "candidates.json", "eval.parquet"}
"""Files of quantize that are not for apps."""
_LICENCE = re.compile(r"(licen[cs]e|notice|copying|terms)([._-].*)?", re.IGNORECASE)
_LICENCE_BYTES = 1 << 20
_DESCRIPTIONS = {
    "model.onnx": "the graph, ONNX",
    "encoder_model.onnx": "the encoder's graph, ONNX",
    "decoder_model_merged.onnx": "the decoder's graph, ONNX",
    text_in.FILE: "the graph with its tokenizer inside, ONNX; needs onnxruntime-extensions",
    ort_format.OPERATORS: "operators and types that a reduced ONNX Runtime build needs (--include_ops_by_config)",
    "tokenizer.json": "the tokenizer",
    "tokenizer_config.json": "the tokenizer's settings",
    "config.json": "the model's configuration, with the labels' names",
    "generation_config.json": "the tokens that end an answer",
    drafts.FILE: "the tokens that usually follow others, so that one run of the graph can check several",
    "genai_config.json": "for onnxruntime-genai",
    "chat_template.jinja": "the chat template",
    "labels.json": "the labels, in the order of the logits",
    "README.md": "the model card",
}


def copy(deployed: Path, committed: Iterable[str], target: Path) -> None:
    """Copy quantize's graphs, tokenizer and configurations. committed: the only files that are copied."""
    for name in sorted(set(committed) - _OF_THE_STAGE):
        shutil.copyfile(deployed / name, target / name)


def licences(recipe: Recipe, target: Path) -> None:
    """Copy the licences of teacher and student to `licences/teacher-LICENSE` and so on."""
    for name, find in (("teacher", model_source.teacher), ("student", model_source.student)):
        try:
            source = find(recipe)
        except DistillctlError:
            continue
        folder = source.path if source else None
        if folder is None:
            continue
        for path in sorted((folder if folder.is_dir() else folder.parent).iterdir()):
            if _LICENCE.fullmatch(path.name) and path.is_file() and not path.is_symlink():  # a link could be any file
                with contextlib.suppress(ValueError):  # longer than any licence
                    text = limits.read_bytes(path, _LICENCE_BYTES)
                    (target / "licences").mkdir(exist_ok=True)
                    (target / "licences" / f"{name}-{path.name}").write_bytes(text)


def provenance(recipe: Recipe, inputs: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the provenance of teacher, student and data. inputs: fingerprints from collect's and train's manifests."""
    kinds = {"student": "student.", "teacher": "teacher.", "data": "data."}
    rows = []
    for source in model_card.sources(recipe):
        kind = next(kind for kind in kinds if source["part"].startswith(kind))
        read = {key: value for key, value in sorted(inputs.items()) if key.startswith(kinds[kind])}
        rows.append({**source, "sha256": read})
    return rows


def files(folder: Path) -> dict[str, File]:
    """Describe every file but bundle.json."""
    return {
        name: File(bytes=(folder / name).stat().st_size, sha256=file_digest(folder / name), what=_description(name))
        for name in archive.files(folder)
        if name != NAME
    }


def shown(listed: Mapping[str, File]) -> str:
    """Return the card's list of files."""
    return "\n".join(f"- {markdown.code(name)} ({file.bytes:,} bytes): {file.what}" for name, file in listed.items())


def _description(name: str) -> str:
    path = Path(name)
    if path.parts[0] == "licences":
        return "a licence of the teacher or the student"
    if path.parts[0] == code.FOLDER:
        languages = {".py": "Python", ".mjs": "JavaScript", ".kt": "Kotlin", ".swift": "Swift"}
        return f"how to use it: {languages[path.suffix]}"
    if path.suffix == ".ort":
        return f"the graph of {path.stem}.onnx in ONNX Runtime's format for phones"
    if ".onnx" in name and path.suffix != ".onnx":
        return "weights of a graph"
    return _DESCRIPTIONS.get(name, "configuration")


def sizes(listed: Mapping[str, File]) -> dict[str, int]:
    """Return the bytes of each listed file."""
    return {name: file.bytes for name, file in listed.items()}


def graphs(folder: Path, made: Sequence[str]) -> list[str]:
    """Return the graphs that take ids: `.onnx` and the ``made`` `.ort` files."""
    return [path.name for path in sorted(folder.glob("*.onnx")) if path.name != text_in.FILE] + sorted(made)
