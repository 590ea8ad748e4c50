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
"""Smallest similarity of a suggested name (`difflib`, 0 to 1)."""
_LISTED, _SHOWN = 2000, 5
"""Numbers of a folder's entries to read, and to show."""


def find(reference: str, *, where: str) -> Path:
    """Return the file or folder of `package:NAME/path`.

    Raises RecipeError for an invalid reference, and UnavailableError if the package is not installed or has no such
    file. Both suggest the nearest existing name. They never advise to install what a recipe names, because anybody can
    publish a package under a name that is often mistyped.
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
            or "package: reads only installed packages; check the name, or give a file, a folder or a hub id",
        )
    if not folders:
        raise UnavailableError(f"{name} is a single module and has no files ({reference})", where=where)
    for folder in folders:
        path = folder / inner
        if _exists(path, reference, where):
            return path
    raise UnavailableError(f"the package {name} has no {inner}", where=where, next=_nearest_file(name, folders, inner))


def _exists(path: Path, reference: str, where: str) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError) as error:  # too long, or a NUL
        raise RecipeError(f"{reference[:200]!r} is not a path: {str(error)[:200]}", where=where) from None


def _folders(name: str) -> list[Path] | None:
    """Return the folders of an installed package; empty for a single module, None if nothing has that name."""
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
        place = folder
        for part in PurePosixPath(inner).parts:
            if not (place / part).exists():
                entries = sorted(_entries(place))
                close = difflib.get_close_matches(part, entries, n=1, cutoff=_ALIKE)
                if not close:
                    more = " …" if len(entries) > _SHOWN else ""
                    within = place.relative_to(folder).as_posix()
                    inside = name if within == "." else f"{name}/{within}"
                    return f"in {PREFIX}{inside} there is: {', '.join(entries[:_SHOWN]) or 'nothing'}{more}"
                part = close[0]
            place = place / part
        return f"did you mean {PREFIX}{name}/{place.relative_to(folder).as_posix()}?"
    return None


def _entries(folder: Path) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            for entry in itertools.islice(entries, _LISTED):
                if not entry.name.startswith((".", "__pycache__")):
                    yield entry.name
    except OSError:
        return
