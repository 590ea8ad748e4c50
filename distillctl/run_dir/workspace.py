"""The run directory: commit stages atomically, and verify what they committed.

Every file is written durably (`atomic_io`), and a stage's manifest last, so a killed stage never passes for finished.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import re
import shutil
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from distillctl.errors import UnavailableError, UpstreamError, first_line
from distillctl.run_dir import manifest as manifests
from distillctl.run_dir import run_marker
from distillctl.run_dir.atomic_io import MOVED, is_folder, owned_by, remove_moved, set_aside_name, was_set_aside
from distillctl.run_dir.atomic_io import is_temporary as is_temporary
from distillctl.run_dir.atomic_io import make_folder as make_folder
from distillctl.run_dir.atomic_io import move as move
from distillctl.run_dir.atomic_io import open_to_append as open_to_append
from distillctl.run_dir.atomic_io import replacing as replacing
from distillctl.run_dir.atomic_io import replacing_folder as replacing_folder
from distillctl.run_dir.atomic_io import sync as sync
from distillctl.run_dir.atomic_io import writable as writable
from distillctl.run_dir.atomic_io import write_text as write_text
from distillctl.run_dir.facts import Facts, FactsT
from distillctl.run_dir.fingerprints import digest as digest
from distillctl.run_dir.fingerprints import file_digest as file_digest
from distillctl.run_dir.fingerprints import tree_digest as tree_digest
from distillctl.run_dir.manifest import MANIFEST as MANIFEST
from distillctl.run_dir.manifest import SCRATCH, Output
from distillctl.run_dir.manifest import Manifest as Manifest
from distillctl.run_dir.manifest import versions as versions
from distillctl.run_dir.run_marker import FOLDERS as FOLDERS
from distillctl.run_dir.run_marker import LOCK, MARKER
from distillctl.untrusted import regular_files

NOT_LOAD_BEARING = {
    "recipe.lock.yaml": "the recipe with every default, for people; no command reads it",
    LOCK: "names the process that holds the run directory; the lock itself belongs to the operating system",
    MARKER: "marks a run directory, and holds the token of its temporary files",
    "collect/served/answers.damaged.jsonl": "damaged lines of answers, set aside; no command reads it",
    "collect/served/failed.jsonl": "rows that a server could not answer, for people; no command reads it",
}
"""File that `status` does not verify → why no result depends on it. It verifies all other files."""
FAILED = "failed"
"""Folder for attempts that failed a gate (`attempts`)."""
PATHS = {"artifact": 2, "folder": 1, "archive": 1}
"""Fact that is a path from the run directory → number of its parts."""


@dataclass(frozen=True)
class StageOutput:
    """The outcome of a stage, to be committed."""

    outputs: list[str]
    """Paths from the stage's folder; a folder stands for all files in it."""
    facts: Facts


def _below(folder: Path, names: Iterable[str]) -> list[Path]:
    """Return the files of these names, and all files in the folders among them, in order."""
    paths = (folder / name for name in names)
    return sorted(f for path in paths for f in (path.rglob("*") if path.is_dir() else [path]) if f.is_file())


def _others(folder: Path, stage: str, ours: Collection[str]) -> list[str]:
    """Return the user's files in a stage's folder: not in ``ours``, nor named like shards, checkpoints or answers."""
    paths = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        known = name in ours or name in _WHILE_AT_WORK or f"{stage}/{name}" in NOT_LOAD_BEARING
        if not is_folder(path) and not (known or _MADE.match(name)):
            paths.append(name)
    return paths


_WHILE_AT_WORK = (MANIFEST, "served/answers.jsonl", "served/grants.json")
_MADE = re.compile(rf"{SCRATCH.pattern}/|shards/[^/]+-\d{{5,}}-[0-9a-f]{{16}}\.parquet$")


def _output(file: Path) -> Output:
    return Output(sha256=file_digest(file), bytes=file.stat().st_size)


# ── the run directory ────────────────────────────────────────────────────────────────────────────


class Workspace:
    """One run directory. Each stage reads the manifests of earlier stages and commits its own."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, stage: str) -> Path:
        """Return a stage's folder."""
        return self.root / stage

    def manifest(self, stage: str) -> Manifest | None:
        """Return the stage's manifest, or None if it has not committed. Raise UpstreamError if the manifest is
        damaged."""
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

    def facts(self, stage: str, model: type[FactsT]) -> FactsT:
        """Return the part of a stage's facts that ``model`` declares. Raise UpstreamError if it is not all there."""
        manifest = self.manifest(stage)
        if manifest is None:
            raise UpstreamError(f"{stage} is missing", where=str(self.root), next=f"distillctl {stage} RECIPE")
        return manifest.read(model)

    def damage(self, stage: str, manifest: Manifest) -> str | None:
        """Return what is wrong with the files that the manifest names, or None."""
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
        """Return files in the stage's folder that it did not commit, except hidden ones. Older versions kept no
        record."""
        if manifest.checksum is None:
            return []
        foreign = []
        for path in sorted(self.folder(stage).rglob("*")):
            name = path.relative_to(self.folder(stage)).as_posix()
            known = name in manifest.files or name == MANIFEST or f"{stage}/{name}" in NOT_LOAD_BEARING
            is_scratch = any(name.startswith(f"{folder}/") for folder in manifest.scratch)
            is_hidden = any(part.startswith(".") for part in name.split("/"))
            if path.is_file() and not (known or is_scratch or is_hidden):
                foreign.append(f"{stage}/{name}")
        return foreign

    def located(self, manifest: Manifest) -> Manifest:
        """Return the manifest with paths that the caller can open. Older versions stored paths as they were at that
        time."""
        parts = {key: Path(manifest.facts[key]).parts[-count:] for key, count in PATHS.items() if key in manifest.facts}
        paths = {key: str(self.root.joinpath(*names)) for key, names in parts.items()}
        return manifest.model_copy(update={"facts": manifest.facts | paths})

    def invalidate(self, stage: str) -> None:
        """Remove the stage's manifest, durably, before any of its committed files is changed."""
        folder = self.folder(stage)
        with writable(folder):
            if (folder / MANIFEST).exists():
                (folder / MANIFEST).unlink()
                sync(folder)

    def sweep(self, token: str) -> None:
        """Remove what a killed process left half-written, and put back what it had set aside.

        Both have the token in their names and lie in the stages' folders or next to them. Nothing else is touched.
        """
        with writable(self.root):
            hidden = list(self.root.glob(".*"))
            for name in (*FOLDERS, FAILED):
                for folder in (self.root / name, set_aside_name(self.root / name)):
                    hidden += folder.rglob(".*") if is_folder(folder) else []
            hidden.sort(reverse=True)  # contents of a folder before the folder
            for path in hidden:
                if is_temporary(path.name, token):
                    shutil.rmtree(path) if is_folder(path) else path.unlink(missing_ok=True)
            for path in hidden:
                if path.name == MOVED and path.is_file():
                    remove_moved(path.parent)
            for path in hidden:
                before = was_set_aside(path.name, token)
                if before and is_folder(path):
                    self._recover(path.with_name(before))
            for stage in FOLDERS:
                if is_folder(self.folder(stage) / "checkpoints"):
                    with contextlib.suppress(UpstreamError):
                        if manifest := self.manifest(stage):
                            self._discard(manifest)

    def _recover(self, folder: Path) -> None:
        """Put back what was set aside, unless its replacement is complete; then remove it."""
        is_stage = folder.parent == self.root
        if is_stage and (folder / MANIFEST).exists():
            self._drop(folder)
        elif folder.exists() and not is_stage:
            shutil.rmtree(set_aside_name(folder))
        else:
            shutil.rmtree(folder, ignore_errors=True)
            move(set_aside_name(folder), folder)

    def _drop(self, folder: Path) -> None:
        """Remove a stage's former folder, which has been replaced, but keep the user's files in it.

        They move to the new folder; a name that is taken gets the ending `.kept`. If the former manifest cannot be
        read, they move to a folder of their own, so that no old file passes for a new one.
        """
        set_aside = set_aside_name(folder)
        if not is_folder(set_aside):
            return
        target = folder
        try:
            manifests.read(set_aside / MANIFEST, folder.name)
        except (OSError, ValueError):
            target = folder.with_name(f"{folder.name}.kept")
        ours = manifests.names(set_aside / MANIFEST) | manifests.names(folder / MANIFEST)
        for name in _others(set_aside, folder.name, ours):
            place = target / name
            while os.path.lexists(place):
                place = place.with_name(f"{place.name}.kept")
            make_folder(place.parent)
            move(set_aside / name, place)
        shutil.rmtree(set_aside, ignore_errors=True)

    @contextlib.contextmanager
    def rerun(self, stage: str) -> Iterator[None]:
        """Set the stage's folder aside, so that the block starts from nothing. Restore it if the block fails."""
        folder = self.folder(stage)
        with writable(folder):
            if folder.exists():
                move(folder, set_aside_name(folder))
        try:
            yield
        except BaseException:
            if set_aside_name(folder).exists():  # not committed
                self._recover(folder)
            raise

    def commit(
        self,
        stage: str,
        *,
        recipe: Mapping[str, object],
        inputs: Mapping[str, str],
        outcome: StageOutput,
        seed: int,
        seconds: float,
        keeps: Sequence[str] = (),
    ) -> Manifest:
        """Hash the output files and write the manifest last. Then remove the checkpoints.

        keeps: files, if they exist, that only the next run of the stage reads.
        """
        folder = self.folder(stage)
        with writable(folder):
            make_folder(folder)
            if gone := [name for name in outcome.outputs if not (folder / name).exists()]:
                raise UnavailableError(
                    "was removed while the stage ran",
                    where=str(folder / gone[0]),
                    next=f"distillctl {stage} RECIPE",
                )
            files, kept = _below(folder, outcome.outputs), _below(folder, keeps)
            all_files = [*files, *kept]
            for path in [*all_files, *sorted({file.parent for file in all_files})]:
                sync(path)
            manifest, text = Manifest(
                stage=stage,
                recipe=dict(recipe),
                inputs=dict(inputs),
                outputs={os.path.relpath(file, folder): _output(file) for file in files},
                facts=outcome.facts.as_json(),
                versions=versions(),
                seed=seed,
                seconds=round(seconds, 3),
                created=round(time.time(), 3),
                keeps={os.path.relpath(file, folder): _output(file) for file in kept},
                scratch=tuple(
                    name
                    for path in sorted(folder.glob("checkpoints/*"))
                    if SCRATCH.fullmatch(name := f"checkpoints/{path.name}")
                ),
            ).with_checksum()
            write_text(folder / MANIFEST, text)
        self._discard(manifest)
        with contextlib.suppress(OSError):  # the next `sweep` removes it
            self._drop(folder)
        return manifest

    def _discard(self, manifest: Manifest) -> None:
        """Remove the scratch folders that the manifest names, and their parent if it is then empty."""
        folder = self.folder(manifest.stage)
        for path in (folder / name for name in manifest.scratch):
            if is_folder(path) and is_folder(path.parent):
                shutil.rmtree(path, ignore_errors=True)
                with contextlib.suppress(OSError):
                    path.parent.rmdir()

    def check(self) -> None:
        """Raise UnavailableError, as `lock` would, if the folder exists and is not fit to be a run directory."""
        if self.root.exists():
            run_marker.refuse_others(self.root)
            run_marker.refuse_links(self.root)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the run directory, and clean up after a killed process.

        Raise UnavailableError if the folder is not a run directory, if another process holds it, or if a link or
        special file is in the place of a file to write. The operating system releases the lock when its holder ends.
        """
        path = self.root / LOCK
        with writable(self.root):
            make_folder(self.root)
            run_marker.refuse_others(self.root)
            run_marker.refuse_links(self.root)
            # unbuffered: a full disk can then not fail a second time on close
            file = os.fdopen(regular_files.opened_in_place(path), "r+b", buffering=0)
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read(200).decode(errors="replace").strip() or "another process"
                raise UnavailableError(
                    f"in use by {holder}", where=str(self.root), next="wait for it, or use another --run-dir"
                ) from None
            except OSError as error:
                raise UnavailableError(
                    f"its file system cannot lock files ({error.strerror})",
                    where=str(self.root),
                    next="use a --run-dir on a local disk",
                ) from None
            with writable(self.root):
                token = run_marker.token(self.root)
            with owned_by(token):
                self.sweep(token)
                if os.fstat(file.fileno()).st_nlink > 1:  # a hard link to another file: do not change it
                    with self._still_there(file.fileno()):
                        yield
                    return
                with writable(path):
                    file.truncate(0)
                    file.write(f"process {os.getpid()} on {platform.node()}".encode())
                try:
                    with self._still_there(file.fileno()):
                        yield
                finally:
                    file.truncate(0)

    @contextlib.contextmanager
    def _still_there(self, lock: int) -> Iterator[None]:
        """Raise UnavailableError after the block if the run directory was removed or replaced meanwhile.

        lock: descriptor of the lock file. An error of the block becomes the cause.
        """

        def raise_if_gone(cause: Exception | None) -> None:
            try:
                is_same = os.path.samestat(os.stat(self.root / LOCK), os.fstat(lock))
            except OSError:
                is_same = False
            if not is_same:
                raise UnavailableError(
                    "the run directory was removed or replaced while the command ran",
                    where=str(self.root),
                    next="run the same command again",
                ) from cause

        try:
            yield
        except Exception as error:
            raise_if_gone(error)
            raise
        raise_if_gone(None)
