"""Verify a bundle: it is complete, its graphs open, and they answer as they did when it was built.

The bundle is untrusted: no graph is opened before every name, size and hash is verified, and then only in a process
with limits. No torch.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from distillctl.bundle import archive, text_in
from distillctl.bundle.manifest import MAX_BYTES, NAME, OLD_FORMAT, BundleManifest
from distillctl.errors import DataError, GateFailed, UnavailableError, first_line
from distillctl.graphs import sidecar_files
from distillctl.run_dir.workspace import MANIFEST, file_digest, writable
from distillctl.runtimes import trial
from distillctl.runtimes.process import WorkerFailed, WorkerProcess

_WORKER = "distillctl.bundle.worker"
_NEXT = "distillctl export RECIPE --bundle  builds it again"


def verify(path: Path) -> dict[str, Any]:
    """Verify a bundle, and describe it.

    Raises DataError if ``path`` is not a bundle, UnavailableError if it cannot be read, and GateFailed with all
    differences if it was changed.
    """
    try:
        return _verify(path)
    except OSError as error:
        raise UnavailableError(
            f"cannot be read: {error.strerror or error}", where=str(error.filename or path)
        ) from error


def _verify(path: Path) -> dict[str, Any]:
    if path.is_dir():
        # a bundle in its run directory also has the stage's manifest
        return {"path": str(path)} | _folder(path, {MANIFEST})
    if not path.is_file():
        raise DataError("no such bundle", where=str(path), next="distillctl export RECIPE --bundle")
    with writable(Path(tempfile.gettempdir())), tempfile.TemporaryDirectory(prefix="distillctl-") as scratch:
        folder, again = Path(scratch) / "bundle", Path(scratch) / "again.zip"
        folder.mkdir()
        archive.unpack(path, folder)
        facts = _folder(folder, set())
        archive.write(folder, again)
        if file_digest(again) != file_digest(path):
            raise GateFailed(
                "its files are unchanged, but the archive is not the original one (packed again?)",
                where=str(path),
                next="unpack it, and verify the folder",
            )
        return {"path": str(path)} | facts


def _folder(folder: Path, allowed: set[str]) -> dict[str, Any]:
    manifest = _manifest(folder)
    problems = list(_differences(folder, manifest, allowed)) or ["there is no graph"] * (not manifest.graphs)
    if not problems:
        problems = [problem for name in manifest.graphs for problem in _outside(folder, name, manifest)]
    if problems:
        raise _failed(folder, problems)
    graphs = _answers(folder, manifest)
    return {
        "name": manifest.name,
        "task": manifest.task,
        "files": len(manifest.files) + 1,
        "bytes": sum(file.bytes for file in manifest.files.values()) + (folder / NAME).stat().st_size,
        "graphs": graphs,
        "example": manifest.example.model_dump(exclude_none=True),
    }


# ── the files ────────────────────────────────────────────────────────────────────────────────────


def _manifest(folder: Path) -> BundleManifest:
    path = folder / NAME
    if not path.is_file() or path.is_symlink():
        raise DataError(f"it is not a bundle: it has no {NAME}", where=str(folder), next=_NEXT)
    if path.stat().st_size > MAX_BYTES:
        raise _failed(folder, [f"{NAME} has {path.stat().st_size:,} bytes, and {MAX_BYTES:,} are allowed"])
    data = path.read_bytes()
    try:
        manifest = BundleManifest.model_validate(from_json(data, allow_inf_nan=False))
    except ValueError as error:
        if OLD_FORMAT in data:
            message = "an older version made it, whose snippets left out what the recipe puts around an input"
            raise GateFailed(message, where=str(folder), next=_NEXT) from None
        raise _failed(folder, [f"{NAME} is damaged: {first_line(error)}"]) from None
    if not manifest.is_whole or manifest.dumps() != data:
        raise _failed(folder, [f"{NAME} is damaged: its digest differs"])
    return manifest


def _differences(folder: Path, manifest: BundleManifest, allowed: set[str]) -> list[str]:
    """Compare names, then sizes, then hashes, so that no file is read that is larger than it should be."""
    problems = [f"{name!r}: {problem}" for name in manifest.files if (problem := archive.check_name(name))]
    if problems:
        return problems
    present = set(archive.files(folder)) - {NAME}
    missing = sorted(set(manifest.files) - present)
    surplus = sorted(present - set(manifest.files) - allowed)
    problems = [f"{name} is missing" for name in missing] + [f"{name} is not listed" for name in surplus]
    for name, file in manifest.files.items():
        if name in present:
            size = (folder / name).stat().st_size
            if size != file.bytes:
                problems.append(f"{name} has {size:,} bytes, not {file.bytes:,}")
            elif file_digest(folder / name) != file.sha256:
                problems.append(f"{name} is damaged: its SHA-256 differs")
    return problems


def _outside(folder: Path, name: str, manifest: BundleManifest) -> list[str]:
    """Return the problem if a graph would read weights from elsewhere."""
    if name not in manifest.files:
        return [f"the graph {name} is not among the files"]
    if not name.endswith(".onnx"):
        return []
    try:
        problem = sidecar_files.problem_of(folder / name)
    except Exception as error:
        problem = f"the file is not an ONNX graph: {first_line(error)}"
    return [] if problem is None else [f"{name}: {problem}"]


# ── the graphs ───────────────────────────────────────────────────────────────────────────────────


def _answers(folder: Path, manifest: BundleManifest) -> dict[str, str]:
    """Return graph → "answers as recorded", or why it was not opened."""
    results: dict[str, str] = {}
    problems: list[str] = []
    job = {"folder": str(folder), "threads": 1, **trial.limits(folder)}
    with WorkerProcess("bundle", job, module=_WORKER, load_seconds=trial.patience(job)) as worker:
        for name, graph in manifest.graphs.items():
            if graph.takes == "text" and not text_in.is_installed():
                results[name] = f"not opened: {text_in.EXTENSIONS} is not installed (pip install 'distillctl[text-in]')"
                continue
            try:
                problem = worker.ask({"graph": name}, trial.patience(job))["problem"]
            except WorkerFailed as error:
                raise _failed(folder, [*problems, f"{name} does not open or run: {error.reason}"]) from error
            results[name] = problem or "answers as recorded"
            problems += [f"{name} {problem}"] if problem else []
    if problems:
        raise _failed(folder, problems)
    return results


def _failed(folder: Path, problems: list[str]) -> GateFailed:
    lines = "\n".join(f"  {problem}" for problem in problems)
    return GateFailed(f"the bundle is not as it was built:\n{lines}", where=str(folder), next=_NEXT)
