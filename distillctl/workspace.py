"""The run directory: manifests, fingerprints, atomic commits. The one path by which files are written.

Everything is written to a temporary name, fsynced and renamed; a stage's manifest comes last, so a killed stage leaves
nothing that passes for done.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distillctl import manifest as manifests
from distillctl.errors import Unavailable, UpstreamError, first_line
from distillctl.fingerprints import digest as digest
from distillctl.fingerprints import file_digest as file_digest
from distillctl.fingerprints import tree_digest as tree_digest
from distillctl.manifest import MANIFEST as MANIFEST
from distillctl.manifest import SCRATCH, Output
from distillctl.manifest import Manifest as Manifest
from distillctl.manifest import versions as versions

NOT_LOAD_BEARING = {
    "recipe.lock.yaml": "the recipe with every default, for people; no command reads it",
    ".lock": "whoever holds the run directory; the lock itself is the operating system's",
    "collect/served/failed.jsonl": "the rows that a server could not answer, for people; no command reads it",
}
"""Files of a run directory that `status` does not verify → why no result can depend on them. It verifies all others."""
PATHS = {"artifact": 2, "folder": 1, "archive": 1}
"""Facts that are paths from the run directory → how many names they have."""
FOLDERS = ("collect", "train", "export", "quantize", "bench", "devices", "report", "bundle")
"""Of a run directory; whatever else lies in it is the user's."""


@dataclass(frozen=True)
class Outcome:
    """What a stage hands back to be committed."""

    outputs: list[str]
    """Paths from the stage's folder; a folder means all files in it."""
    facts: dict[str, Any]


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


def _below(folder: Path, names: Iterable[str]) -> list[Path]:
    """The files of these names, of folders all that are in them, in order."""
    named = (folder / name for name in names)
    return sorted(f for path in named for f in (path.rglob("*") if path.is_dir() else [path]) if f.is_file())


def _names(folder: Path, pattern: str) -> list[str]:
    """Paths from the folder of what matches the pattern, in order."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.glob(pattern))


def _output(file: Path) -> Output:
    return Output(sha256=file_digest(file), bytes=file.stat().st_size)


_OURS = re.compile(rf"\.({'|'.join(FOLDERS)})\.(\w+\.tmp|aside)|\.(recipe\.lock\.yaml|bundle\.zip)\.\d+\.tmp")
"""Names of what is in the making, or set aside, beside the stages' folders."""


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
        """The stage's manifest, or None when it has not committed; UpstreamError when it is not as it was written."""
        path = self.folder(stage) / MANIFEST
        try:
            return manifests.read(path, stage)
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
        for name, output in manifest.files.items():
            path, shown = self.folder(stage) / name, os.path.normpath(f"{stage}/{name}")
            if not path.is_file():
                return f"{shown} is gone"
            home = self.root if name.startswith("../") else self.folder(stage)
            if not path.resolve().is_relative_to(home.resolve()):
                return f"{shown} is a link that leads out of the stage's folder"
            try:
                if path.stat().st_size != output.bytes or file_digest(path) != output.sha256:
                    return f"{shown} is damaged (its bytes are not what the manifest says)"
            except OSError as error:
                return f"{shown} cannot be read: {error.strerror or error}"
        return None

    def strangers(self, stage: str, manifest: Manifest) -> list[str]:
        """Files in the stage's folder that it did not commit, hidden ones aside; an older version's are not known."""
        if manifest.checksum is None:
            return []
        folder, found = self.folder(stage), []
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            known = name in manifest.files or name == MANIFEST or f"{stage}/{name}" in NOT_LOAD_BEARING
            is_scratch = any(name.startswith(f"{one}/") for one in manifest.scratch)
            is_hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
            if path.is_file() and not (known or is_scratch or is_hidden):
                found.append(f"{stage}/{name}")
        return found

    def located(self, manifest: Manifest) -> Manifest:
        """Its facts with paths that the caller can open. Older versions stored those of whoever made them."""
        named = {key: Path(manifest.facts[key]).parts[-count:] for key, count in PATHS.items() if key in manifest.facts}
        paths = {key: str(self.root.joinpath(*names)) for key, names in named.items()}
        return manifest.model_copy(update={"facts": type(manifest.facts)({**manifest.facts, **paths})})

    def retract(self, stage: str) -> None:
        """Before a committed output is touched: the stage no longer counts as done."""
        folder = self.folder(stage)
        with writable(folder):
            if (folder / MANIFEST).exists():
                (folder / MANIFEST).unlink()
                sync(folder)

    def sweep(self) -> None:
        """Remove what a killed process left half-written; put back what it had set aside. All of it lies in the stages'
        folders, or hidden beside them under their names: nothing else in the run directory is touched."""
        with writable(self.root):
            folders = [self.root / name for name in FOLDERS]
            within = [one for folder in folders for one in (folder, _aside(folder)) if _is_folder(one)]
            hidden = [path for folder in within for path in folder.rglob(".*")]
            hidden += [path for path in self.root.glob(".*") if _OURS.fullmatch(path.name)]
            hidden.sort(reverse=True)  # what lies in a folder before the folder
            for torn in (path for path in hidden if path.suffix == ".tmp"):
                shutil.rmtree(torn) if _is_folder(torn) else torn.unlink(missing_ok=True)
            for aside in (path for path in hidden if path.suffix == ".aside" and _is_folder(path)):
                self._settle(aside.with_name(aside.name.removeprefix(".").removesuffix(".aside")))
            for folder in folders:
                if (folder / "checkpoints").is_dir():
                    with contextlib.suppress(UpstreamError):
                        if manifest := self.manifest(folder.name):
                            self._discard(manifest)

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
        keeps: Sequence[str] = (),
    ) -> Manifest:
        """Hash the outcome's files and write the manifest, last; then remove the checkpoints of the run that is done.

        keeps: files, where they are there, that only the stage's own next run reads.
        """
        folder = self.folder(stage)
        with writable(folder):
            make_folder(folder)
            files, kept = _below(folder, outcome.outputs), _below(folder, keeps)
            every = [*files, *kept]
            for path in [*every, *sorted({file.parent for file in every})]:
                sync(path)
            manifest, text = Manifest(
                stage=stage,
                recipe=dict(recipe),
                inputs=dict(inputs),
                outputs={os.path.relpath(file, folder): _output(file) for file in files},
                facts=outcome.facts,
                versions=versions(),
                seed=seed,
                seconds=round(seconds, 3),
                created=round(time.time(), 3),
                keeps={os.path.relpath(file, folder): _output(file) for file in kept},
                scratch=tuple(name for name in _names(folder, "checkpoints/*") if SCRATCH.fullmatch(name)),
            ).sealed()
            write_text(folder / MANIFEST, text)
        self._discard(manifest)
        shutil.rmtree(_aside(folder), ignore_errors=True)
        return manifest

    def _discard(self, manifest: Manifest) -> None:
        """Remove what the manifest says is of no more use, and the folder that it was in if that is all it held."""
        folder = self.folder(manifest.stage)
        for path in (folder / name for name in manifest.scratch):
            if _is_folder(path) and _is_folder(path.parent):
                shutil.rmtree(path, ignore_errors=True)
                with contextlib.suppress(OSError):
                    path.parent.rmdir()

    def _refuse_others(self) -> None:
        """Unavailable where the folder holds something, and nothing that makes it a run directory."""
        names = {path.name for path in self.root.iterdir()}
        stages = (folder for name in FOLDERS for folder in (self.folder(name), _aside(self.folder(name))))
        is_one = "recipe.lock.yaml" in names or any((folder / MANIFEST).exists() for folder in stages)
        if not is_one and (others := sorted(name for name in names - {".lock"} if not _OURS.fullmatch(name))):
            raise Unavailable(
                f"the folder is not empty and is not a run directory (it holds {others[0]})",
                where=str(self.root),
                next="choose a new or empty folder with --run-dir",
            )

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run directory, as it was last committed; a second process is refused with the holder's process id.

        The lock is the operating system's and goes with its holder, however that ends.
        """
        path = self.root / ".lock"
        with writable(self.root):
            make_folder(self.root)
            self._refuse_others()
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
