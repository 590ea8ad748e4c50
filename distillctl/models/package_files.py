"""Find files in an installed Python package: `package:NAME/path`. The package is never imported."""

from __future__ import annotations

import difflib
import importlib.util
import itertools
import os
import re
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path, PurePosixPath

from distillctl.errors import RecipeError, UnavailableError

PREFIX = "package:"
_ALIKE = 0.7
"""Least similarity of a name that is suggested (`difflib`, 0 to 1)."""
_LISTED, _TOLD = 2000, 5
"""How many entries of a folder are read, and how many are named."""


def find(reference: str, *, where: str) -> Path:
    """Return the file or folder of `package:NAME/path`.

    RecipeError for a reference that is none; UnavailableError where the package is not installed or has no such file.
    Both suggest the nearest name that is there. They never advise to install what a recipe names: anybody can publish a
    package under a name that is mistyped often.
    """
    name, _, inner = reference.removeprefix(PREFIX).partition("/")
    if ".." in Path(inner).parts or inner.startswith("/") or not name.isidentifier():
        raise RecipeError(
            f"{reference[:200]!r} is not package:NAME or package:NAME/path",
            where=where,
            next=_did_you_mean(name, inner),
        )
    folders = _folders(name)
    if folders is None:
        raise UnavailableError(
            f"the Python package {name[:200]} is not installed ({reference[:200]})",
            where=where,
            next=_did_you_mean(name, inner)
            or "package: reads only what is installed; check the name, or give a file, a folder or a hub id",
        )
    if not folders:
        raise UnavailableError(f"{name} is a single module and carries no files ({reference})", where=where)
    for folder in folders:
        path = folder / inner
        if _exists(path, reference, where):
            return path
    raise UnavailableError(
        f"the package {name} carries no {inner}", where=where, next=_nearest_file(name, folders, inner)
    )


def _exists(path: Path, reference: str, where: str) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError) as error:  # too long, or a NUL
        raise RecipeError(f"{reference[:200]!r} is no path: {str(error)[:200]}", where=where) from None


def _folders(name: str) -> list[Path] | None:
    """Return the folders of an installed package; none of a single module, None where nothing of that name is there."""
    try:
        spec = importlib.util.find_spec(name)
    except (ValueError, ImportError):  # a module without a spec
        spec = None
    return None if spec is None else [Path(folder) for folder in spec.submodule_search_locations or ()]


def _did_you_mean(name: str, inner: str) -> str | None:
    """Suggest the installed package whose name, or whose distribution's, is nearest to ``name``."""
    carried = {module: names for module, names in metadata.packages_distributions().items() if module.isidentifier()}
    modules = {_folded(module): module for module in carried}
    for module, distributions in carried.items():
        for distribution in distributions:
            modules.setdefault(_folded(distribution), module)
    for close in difflib.get_close_matches(_folded(name[:100]), modules, n=3, cutoff=_ALIKE):
        if _folders(modules[close]):
            return f"did you mean {PREFIX}{modules[close]}{'/' if inner else ''}{inner}, which is installed?"
    return None


def _folded(name: str) -> str:
    return re.sub(r"[-_.]+", "_", name).lower()


def _nearest_file(name: str, folders: Iterable[Path], inner: str) -> str | None:
    """Suggest the path whose parts are nearest to those of ``inner``, or name some entries of the last folder."""
    for folder in folders:
        at = folder
        for part in PurePosixPath(inner).parts:
            if not (at / part).exists():
                there = sorted(_entries(at))
                close = difflib.get_close_matches(part, there, n=1, cutoff=_ALIKE)
                if not close:
                    more = " …" if len(there) > _TOLD else ""
                    within = at.relative_to(folder).as_posix()
                    inside = name if within == "." else f"{name}/{within}"
                    return f"in {PREFIX}{inside} there is: {', '.join(there[:_TOLD]) or 'nothing'}{more}"
                part = close[0]
            at = at / part
        return f"did you mean {PREFIX}{name}/{at.relative_to(folder).as_posix()}?"
    return None


def _entries(folder: Path) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            for entry in itertools.islice(entries, _LISTED):
                if not entry.name.startswith((".", "__pycache__")):
                    yield entry.name
    except OSError:
        return
