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
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import from_json

from distillctl import facts, limits
from distillctl.errors import Unavailable, UpstreamError, first_line

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


_MANIFEST_BYTES = 64 << 20


def _inside(name: str) -> str:
    """A path below a stage's folder, or a file beside it (bundle.zip), whatever the system makes of it."""
    parts = name.removeprefix("../").split("/")
    most = 1 if name.startswith("../") else 16
    if not (name.isprintable() and len(parts) <= most and all(p.strip(".") and len(p.encode()) < 256 for p in parts)):
        raise ValueError("no path of the stage's")
    return name


class Output(BaseModel):
    """One file a stage committed."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class Manifest(BaseModel):
    """What a stage committed, from what, and what it found."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    stage: str
    recipe: dict[str, Any]
    """The part of the recipe the stage depends on."""
    inputs: dict[str, str]
    """Name → fingerprint: upstream manifests, data files, model files."""
    outputs: dict[Annotated[str, AfterValidator(_inside)], Output]
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


def make_folder(path: Path) -> None:
    """Make a folder and those above it, durably: the name of a new one is an entry of the one above."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync(path.parent)


def move(path: Path, target: Path) -> None:
    """Rename durably, within one folder."""
    os.replace(path, target)
    sync(target.parent)


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
        marks = [*_TORCH_WRITER, *(mark for code in _TOLD for mark in (f"os error {code})", os.strerror(code)))]
        if any(mark in text for mark in marks):
            raise _unwritable(path, error) from error
        raise


_TORCH_WRITER = ("PytorchStreamWriter failed", "inline_container.cc")
_TOLD = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO)
"""Looked for in the text of libraries' errors."""
_WRITE_ERRORS = (
    *_TOLD,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EISDIR,
    errno.ESTALE,
)


def _unwritable(path: Path, error: Exception) -> Unavailable:
    reason, where, next = str(error), path, "free some space or choose another place with --run-dir"
    if told := re.search(r"\(os error (\d+)\)", reason):  # safetensors' words around it say no more
        reason = os.strerror(int(told[1]))
    if isinstance(error, OSError):
        reason = error.strerror or reason
        named = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else path
        if not named.is_relative_to(path.parent):  # a scratch file of this stage's
            where, next = named, "free some space there, or set TMPDIR"
    return Unavailable(f"cannot be written: {reason}", where=str(where), next=f"{next}; what was committed is kept")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path``; when the block ends well, it is fsynced and takes its place."""
    with writable(path):
        make_folder(path.parent)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            yield temporary
            sync(temporary)
            move(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a whole text file durably."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside ``path``; when the block ends well, all in it is fsynced and it takes its place.

    A stage's committed folder is set aside, until the new one is committed.
    """
    with writable(path):
        make_folder(path.parent)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        temporary.chmod(0o777 & ~_umask())
        try:
            yield temporary
            for item in [*temporary.rglob("*"), temporary]:
                sync(item)
            aside = _aside(path)
            if path.exists() and aside.exists():  # `anew` set it aside; what is there since then is this run's scratch
                shutil.rmtree(path)
            elif path.exists():
                move(path, aside)
            move(temporary, path)
            if not (aside / MANIFEST).exists():
                shutil.rmtree(aside, ignore_errors=True)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _is_folder(path: Path) -> bool:
    """And no link to one."""
    return path.is_dir() and not path.is_symlink()


def _aside(folder: Path) -> Path:
    """Where a folder is kept while another one takes its place."""
    return folder.with_name(f".{folder.name}.aside")


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
            document = from_json(limits.read_bytes(path, _MANIFEST_BYTES), allow_inf_nan=False)
            manifest = Manifest.model_validate(document)
            if manifest.stage != stage:
                raise ValueError(f"it is one of {manifest.stage}")
            return manifest.model_copy(update={"facts": facts.checked(manifest.facts)})
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, OSError) as error:
            raise UpstreamError(
                f"the manifest is damaged ({first_line(error)})",
                where=str(path),
                next=f"distillctl {stage} RECIPE",
            ) from None

    def damage(self, stage: str, manifest: Manifest) -> str | None:
        """What is wrong with the files the manifest names, or None."""
        for name, output in manifest.outputs.items():
            path = self.folder(stage) / name
            if not path.is_file():
                return f"{stage}/{name} is gone"
            home = self.root if name.startswith("../") else self.folder(stage)
            if not path.resolve().is_relative_to(home.resolve()):
                return f"{stage}/{name} is a link that leads out of the stage's folder"
            try:
                if path.stat().st_size != output.bytes or file_digest(path) != output.sha256:
                    return f"{stage}/{name} is damaged (its bytes are not what the manifest says)"
            except OSError as error:
                return f"{stage}/{name} cannot be read: {error.strerror or error}"
        return None

    def retract(self, stage: str) -> None:
        """Before a committed output is touched: the stage no longer counts as done."""
        folder = self.folder(stage)
        with writable(folder):
            if (folder / MANIFEST).exists():
                (folder / MANIFEST).unlink()
                sync(folder)

    def sweep(self) -> None:
        """Remove what a killed process left half-written; put back what it had set aside."""
        with writable(self.root):
            hidden = sorted(self.root.rglob(".*"), reverse=True)  # what lies in a folder before the folder
            for torn in (path for path in hidden if path.suffix == ".tmp"):
                shutil.rmtree(torn) if _is_folder(torn) else torn.unlink(missing_ok=True)
            for aside in (path for path in hidden if path.suffix == ".aside" and _is_folder(path)):
                self._settle(aside.with_name(aside.name.removeprefix(".").removesuffix(".aside")))

    def _settle(self, folder: Path) -> None:
        """Drop what was set aside where something whole is in its place; put it back otherwise."""
        aside = _aside(folder)
        is_stage = folder.parent == self.root
        if (folder / MANIFEST).exists() if is_stage else folder.exists():
            shutil.rmtree(aside)
        else:
            shutil.rmtree(folder, ignore_errors=True)
            move(aside, folder)

    @contextlib.contextmanager
    def anew(self, stage: str) -> Iterator[None]:
        """Within the block the stage has done nothing yet; when the block fails, all is as it was before."""
        folder = self.folder(stage)
        with writable(folder):
            if folder.exists():
                move(folder, _aside(folder))
        try:
            yield
        except BaseException:
            if _aside(folder).exists():  # not committed
                self._settle(folder)
            raise

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
            make_folder(folder)
            named = [folder / name for name in outcome.outputs]
            files = sorted(f for p in named for f in (p.rglob("*") if p.is_dir() else [p]) if f.is_file())
            for path in [*files, *sorted({file.parent for file in files})]:
                sync(path)
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
        shutil.rmtree(_aside(folder), ignore_errors=True)
        return manifest

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run directory, as it was last committed; a second process is refused with the holder's process id.

        The lock is the operating system's and goes with its holder, however that ends.
        """
        path = self.root / ".lock"
        with writable(self.root):
            make_folder(self.root)
            file = path.open("ab+", buffering=0)  # nothing that a full disk could refuse once more when it is closed
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read(200).decode(errors="replace").strip() or "another process"
                raise Unavailable(
                    f"in use by {holder}", where=str(self.root), next="wait for it, or use another --run-dir"
                ) from None
            except OSError as error:
                raise Unavailable(
                    f"its file system cannot lock files ({error.strerror})",
                    where=str(self.root),
                    next="use a --run-dir on a local disk",
                ) from None
            self.sweep()
            with writable(path):
                file.truncate(0)
                file.write(f"process {os.getpid()} on {platform.node()}".encode())
            try:
                yield
            finally:
                file.truncate(0)
