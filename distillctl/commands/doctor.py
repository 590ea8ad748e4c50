"""Collect what `doctor` shows, without heavy imports: versions come from package metadata."""

from __future__ import annotations

import os
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

from distillctl.run_dir import workspace
from distillctl.runtimes import machine


def examine() -> dict[str, Any]:
    """Return versions, machine, writable places, and required packages that are missing or out of range."""
    from packaging.requirements import Requirement

    missing = []
    for line in metadata.requires("distillctl") or []:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            missing.append(f"{requirement} is not installed")
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            missing.append(f"{requirement} is required, and {installed} is installed")
    facts = machine.describe()
    flags = set(facts.flags)
    exact = flags & {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"}
    return {
        "versions": workspace.versions(),
        "machine": facts.as_json(),
        "int8": "exact dot products" if exact else "may saturate: prefer quantize candidates with reduce_range",
        "disk_free_bytes": shutil.disk_usage(Path.cwd()).free,
        "writable": os.access(Path.cwd(), os.W_OK),
        "missing": missing,
    }
