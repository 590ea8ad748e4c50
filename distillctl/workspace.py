"""The run directory: manifests, fingerprints, atomic commits. The one path by which files are written.

Everything is written to a temporary name, fsynced and renamed; a stage's manifest comes last, so a killed stage leaves
nothing that passes for done.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from distillctl.errors import Unavailable, UpstreamError

MANIFEST = "manifest.json"
LIBRARIES = (
    "distillctl",
    "torch",
    "transformers",
    "optimum",
    "onnx",
    "onnxruntime",
    "onnxruntime-genai",
    "onnxruntime-extensions",
    "tokenizers",
)


# ── fingerprints ─────────────────────────────────────────────────────────────────────────────────


def digest(value: Any) -> str:
    """SHA-256 (hex) of a JSON value in canonical form."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_digest(path: Path) -> str:
    """SHA-256 (hex) of a file, or of the names and contents of all files below a folder."""
    if path.is_file():
        return file_digest(path)
    return digest({str(p.relative_to(path)): file_digest(p) for p in sorted(path.rglob("*")) if p.is_file()})


# ── manifests ────────────────────────────────────────────────────────────────────────────────────


class Output(BaseModel):
    """One file a stage committed."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    sha256: str
    bytes: int


class Manifest(BaseModel):
    """What a stage committed, from what, and what it found."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    stage: str
    recipe: dict[str, Any]
    """The part of the recipe the stage depends on."""
    inputs: dict[str, str]
    """Name → fingerprint: upstream manifests, data files, model files."""
    outputs: dict[str, Output]
    """Path from the stage's folder → hash and size."""
    facts: dict[str, Any]
    """The stage's findings; every number in the report is one of them."""
    versions: dict[str, str]
    seed: int
    seconds: float
    created: float
    """Unix time."""

    @property
    def fingerprint(self) -> str:
        """Over what was asked, from what, and the bytes that came of it; not over times and versions."""
        return digest(self.model_dump(include={"stage", "recipe", "inputs", "outputs", "seed"}, mode="json"))


@dataclass(frozen=True)
class Outcome:
    """What a stage hands back to be committed."""

    outputs: list[str]
    """Paths from the stage's folder; a folder means all files in it."""
    facts: dict[str, Any]


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide the numbers."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


# ── durable writes ───────────────────────────────────────────────────────────────────────────────


def sync(path: Path) -> None:
    """fsync a file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def writable(path: Path) -> Iterator[None]:
    """Turn a full disk, a file-size limit, or a read-only folder into Unavailable that names ``path``.

    Libraries wrap the operating system's error in their own (safetensors: a RuntimeError-like with "os error 28";
    torch.save: a RuntimeError that names its writer's source file), so the text is looked at too.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _WRITE_ERRORS:
            raise _unwritable(path, error) from error
        raise
    except Exception as error:
        text = str(error)
        marks = [*_TORCH_WRITER, *(mark for code in _FULL for mark in (f"os error {code}", os.strerror(code)))]
        if any(mark in text for mark in marks):
            raise _unwritable(path, error) from error
        raise


_TORCH_WRITER = ("PytorchStreamWriter failed", "inline_container.cc")
_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
_WRITE_ERRORS = (*_FULL, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.EIO)


def _unwritable(path: Path, error: Exception) -> Unavailable:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return Unavailable(
        f"cannot be written: {reason}",
        where=str(path),
        next="free some space or choose another place with --run-dir; what was committed is kept",
    )


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path``; when the block ends well, it is fsynced and takes its place."""
    with writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            yield temporary
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a whole text file durably."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside ``path``; when the block ends well, all in it is fsynced and it takes its place."""
    with writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        temporary.chmod(0o777 & ~_umask())
        try:
            yield temporary
            for item in [*temporary.rglob("*"), temporary]:
                sync(item)
            if path.exists():
                shutil.rmtree(path)
            os.replace(temporary, path)
            sync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


# ── the run directory ────────────────────────────────────────────────────────────────────────────


class Workspace:
    """One run directory. A stage reads upstream manifests and commits its own."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, stage: str) -> Path:
        return self.root / stage

    def manifest(self, stage: str) -> Manifest | None:
        """The stage's manifest, or None when it has not committed; UpstreamError when it cannot be read."""
        path = self.folder(stage) / MANIFEST
        try:
            return Manifest.model_validate_json(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValidationError, UnicodeDecodeError, OSError) as error:
            raise UpstreamError(
                f"the manifest is damaged ({str(error).splitlines()[0]})",
                where=str(path),
                next=f"distillctl {stage} RECIPE",
            ) from None

    def damage(self, stage: str, manifest: Manifest) -> str | None:
        """What is wrong with the files the manifest names, or None."""
        for name, output in manifest.outputs.items():
            path = self.folder(stage) / name
            if not path.is_file():
                return f"{stage}/{name} is gone"
            if path.stat().st_size != output.bytes or file_digest(path) != output.sha256:
                return f"{stage}/{name} is damaged (its bytes are not what the manifest says)"
        return None

    def retract(self, stage: str) -> None:
        """Before a committed output is touched: the stage no longer counts as done."""
        with writable(self.folder(stage)):
            (self.folder(stage) / MANIFEST).unlink(missing_ok=True)

    def sweep(self, stage: str) -> None:
        """Remove what a killed process left half-written; put back what it had set aside."""
        aside = self.root / f".{stage}.aside"
        with writable(self.root):
            if aside.exists():
                if (self.folder(stage) / MANIFEST).exists():
                    shutil.rmtree(aside)
                else:
                    shutil.rmtree(self.folder(stage), ignore_errors=True)
                    aside.rename(self.folder(stage))
            for torn in [*self.folder(stage).rglob(".*.tmp"), *self.root.glob(f".{stage}.*.tmp")]:
                shutil.rmtree(torn) if torn.is_dir() else torn.unlink(missing_ok=True)

    @contextlib.contextmanager
    def anew(self, stage: str) -> Iterator[None]:
        """Within the block the stage has done nothing yet; when the block fails, all is as it was before."""
        aside = self.root / f".{stage}.aside"
        folder = self.folder(stage)
        with writable(folder):
            if folder.exists():
                folder.rename(aside)
        try:
            yield
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            if aside.exists():
                aside.rename(folder)
            raise
        shutil.rmtree(aside, ignore_errors=True)

    def commit(
        self,
        stage: str,
        *,
        recipe: Mapping[str, Any],
        inputs: Mapping[str, str],
        outcome: Outcome,
        seed: int,
        seconds: float,
    ) -> Manifest:
        """Hash the outcome's files and write the manifest, last."""
        folder = self.folder(stage)
        with writable(folder):
            folder.mkdir(parents=True, exist_ok=True)
            named = [folder / name for name in outcome.outputs]
            files = sorted(f for p in named for f in (p.rglob("*") if p.is_dir() else [p]) if f.is_file())
            for file in files:
                sync(file)
            manifest = Manifest(
                stage=stage,
                recipe=dict(recipe),
                inputs=dict(inputs),
                outputs={
                    os.path.relpath(f, folder): Output(sha256=file_digest(f), bytes=f.stat().st_size) for f in files
                },
                facts=outcome.facts,
                versions=versions(),
                seed=seed,
                seconds=round(seconds, 3),
                created=round(time.time(), 3),
            )
            write_text(folder / MANIFEST, manifest.model_dump_json(indent=2) + "\n")
        return manifest

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run directory; a second process is refused with the holder's process id.

        The lock is the operating system's and goes with its holder, however that ends.
        """
        path = self.root / ".lock"
        with writable(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            file = path.open("a+")
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                holder = file.read().strip() or "another process"
                raise Unavailable(
                    f"in use by {holder}", where=str(self.root), next="wait for it, or use another --run-dir"
                ) from None
            with writable(path):
                file.truncate(0)
                file.write(f"process {os.getpid()} on {platform.node()}")
                file.flush()
            try:
                yield
            finally:
                file.truncate(0)
