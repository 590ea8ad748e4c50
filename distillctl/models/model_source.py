"""Resolve where a file or model comes from: a hub id, a path, or `package:NAME/path` in an installed package."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from distillctl import recipe as recipes
from distillctl.errors import DataError, RecipeError, UnavailableError, first_line
from distillctl.models import cached_folders, gguf_header, hash_cache, package_files
from distillctl.run_dir.workspace import digest
from distillctl.untrusted import regular_files

_KERNEL = tuple(map(Path, ("/proc", "/sys")))
"""Folders of the operating system, whose files show a process's environment and memory, and the machine's state."""
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[\w.-]+)?$")


@dataclass(frozen=True)
class ModelSource:
    """A resolved model reference: a local folder or file, or a hub id."""

    reference: str
    path: Path | None
    revision: str | None = None

    @property
    def is_gguf(self) -> bool:
        """Tell whether the model is a GGUF file."""
        return self.path is not None and self.path.suffix == ".gguf"

    @property
    def from_hub(self) -> bool:
        """Tell whether the reference is a hub id."""
        return self.path is None

    @property
    def name(self) -> str:
        """Return the folder or the hub id, for `from_pretrained`."""
        if self.path is None:
            return self.reference
        return str(self.path.parent if self.is_gguf else self.path)

    @property
    def local_folder(self) -> Path | None:
        """Return the folder with its config and tokenizer if they are on this machine, or None.

        For a GGUF file it is the dequantized folder, for a hub id the snapshot in the local cache.
        """
        if self.is_gguf:
            assert self.path is not None
            cached = cached_folders.place("gguf", gguf_header.cache_key(self.path))
            return cached if cached_folders.is_whole(cached) else None
        if self.path is not None:
            return self.path
        from huggingface_hub import try_to_load_from_cache

        config = try_to_load_from_cache(self.reference, "config.json", revision=self.revision)
        return Path(config).parent if isinstance(config, str) else None

    def fingerprint(self) -> str:
        """Return the hash of the files; for a hub id, of the id and its revision's commit in the local cache."""
        if self.path is not None:
            try:
                return hash_cache.tree_digest(self.path)
            except OSError as error:
                raise UnavailableError(f"cannot be read: {error.strerror or error}", where=str(self.path)) from None
        from huggingface_hub import scan_cache_dir
        from huggingface_hub.errors import CacheNotFound

        commit = self.revision or "main"
        try:
            for repo in scan_cache_dir().repos:
                if repo.repo_id == self.reference and repo.repo_type == "model":
                    commit = next((r.commit_hash for r in repo.revisions if commit in r.refs), commit)
        except CacheNotFound:
            pass
        return digest([self.reference, commit])


@dataclass(frozen=True)
class ServedSource(ModelSource):
    """A model behind a server, by its name there. tokenizer: the one that the recipe names."""

    base_url: str = ""
    api: str = ""
    identity: str = ""
    """The settings on which its answers depend, as JSON."""
    tokenizer: ModelSource | None = None

    @property
    def from_hub(self) -> bool:
        """Tell whether a hub has the model: it does not."""
        return False

    def fingerprint(self) -> str:
        """Return the hash of the settings. The server names its weights only when it answers."""
        return digest([self.identity, self.tokenizer.fingerprint() if self.tokenizer else None])


def _local(reference: str, folder: Path, *, where: str) -> Path:
    """Return the path of a reference. Raise RecipeError if it is no valid path."""
    try:
        path = folder / Path(reference).expanduser()
        regular_files.check_regular(path)
    except regular_files.NotRegular as error:
        raise RecipeError(f"{path}: {error}", where=where) from None
    except (OSError, RuntimeError, ValueError) as error:
        raise RecipeError(f"{reference[:200]!r} is not a path: {first_line(error)[:200]}", where=where) from None
    return path


def check_is_data(path: Path, *, where: str) -> None:
    """Raise DataError for a file of the operating system, such as /proc/self/environ."""
    if any(path.resolve().is_relative_to(folder) for folder in _KERNEL):
        raise DataError(f"{path} belongs to the operating system and is not a data file", where=where)


def data_file(reference: str, folder: Path, *, where: str) -> Path | None:
    """Return the local file or folder of a data reference, or None if it looks like a data set on the hub.

    Raise DataError if it is missing or belongs to the operating system.
    """
    if reference.startswith(package_files.PREFIX):
        return package_files.find(reference, where=where)
    path = _local(reference, folder, where=where)
    if path.is_file() or path.is_dir():
        check_is_data(path, where=where)
        return path
    if path.suffix or not _HUB_ID.match(reference):
        raise DataError(f"there is no file {path}", where=where)
    return None


def teacher(recipe: recipes.Recipe) -> ModelSource:
    """Resolve the recipe's teacher."""
    spec = recipe.teacher
    if isinstance(spec, recipes.OpenAITeacher):
        tokenizer = None
        if spec.tokenizer is not None:
            tokenizer = model(spec.tokenizer, recipe.folder, revision=None, where="teacher.tokenizer")
        identity = json.dumps(spec.identity, sort_keys=True)
        return ServedSource(spec.model, None, None, spec.base_url, spec.api, identity, tokenizer)
    return model(spec.model, recipe.folder, revision=spec.revision, where="teacher.model")


def student(recipe: recipes.Recipe) -> ModelSource | None:
    """Resolve the model from which the student starts; for a new architecture, the model of its tokenizer, if any."""
    spec = recipe.student
    if isinstance(spec, recipes.FromConfigStudent):
        key, reference = "tokenizer", spec.tokenizer
    else:
        key, reference = "model", spec.model
    if isinstance(reference, recipes.NewTokenizer):
        return None
    return model(reference, recipe.folder, revision=spec.revision, where=f"student.{key}")


def model(reference: str, folder: Path, *, revision: str | None, where: str) -> ModelSource:
    """Resolve a model reference. Raise UnavailableError if it is neither a file, a folder nor a possible hub id."""
    if reference.startswith(package_files.PREFIX):
        path = package_files.find(reference, where=where)
    else:
        path = _local(reference, folder, where=where)
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        try:
            regular_files.check_folder(path)
        except OSError as error:
            raise UnavailableError(
                f"cannot be read: {error.strerror or error}", where=str(error.filename or path)
            ) from None
        return ModelSource(reference, path.resolve())
    if path.is_file():
        raise RecipeError(f"{path} is neither a model folder nor a .gguf file", where=where)
    if reference.startswith((".", "/", "~")) or not _HUB_ID.match(reference):
        raise UnavailableError(f"there is no model at {path}", where=where)
    return ModelSource(reference, None, revision)
