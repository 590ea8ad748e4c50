"""Write `.ort`, ONNX Runtime's own format for phones, and the operators that a reduced build of it needs."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from onnxruntime.capi import onnxruntime_pybind11_state as native
from onnxruntime.tools.convert_onnx_models_to_ort import OptimizationStyle, convert_onnx_models_to_ort

from distillctl import console
from distillctl.bundle import ort_canonical
from distillctl.errors import UnavailableError
from distillctl.runtimes.onnxruntime import graph_bytes

OPERATORS = "required_operators_and_types.config"
MAX_BYTES = 2_000_000_000
"""Largest graph: an .ort file is one flatbuffer of at most 2 GiB."""


def convert(folder: Path, *, listed_too: Sequence[Path] = (), library: str | None = None) -> list[str]:
    """Write an `.ort` for each `.onnx` of ``folder``, and `required_operators_and_types.config`. Return the `.ort`
    names.

    Only the fixed style is written, optimised for ARM: the other one leaves nodes to NNAPI and CoreML, and neither
    takes these graphs (see `mobile`). listed_too: further graphs whose operators are listed. library: of custom
    operators. Graphs that are too large for the format get none.
    """
    graphs = sorted(folder.glob("*.onnx"))
    if graph_bytes(folder) > MAX_BYTES:
        console.warn(f"no .ort is written: the format allows 2 GiB, and the graphs have {graph_bytes(folder):,} bytes")
        return []
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        work = Path(scratch)
        for path in [*folder.glob("*.onnx*"), *listed_too]:
            shutil.copyfile(path, work / path.name)
        with console.libraries_quiet(), _disk_errors(folder):
            logging.getLogger("ort_format_model.utils").setLevel(logging.WARNING)
            convert_onnx_models_to_ort(
                work,
                optimization_styles=[OptimizationStyle.Fixed],
                custom_op_library_path=Path(library) if library else None,
                target_platform="arm",
                enable_type_reduction=True,
            )
        written = [path.with_suffix(".ort").name for path in graphs]
        for name in written:
            ort_canonical.rewrite(work / name)
            (work / name).replace(folder / name)
        operators = (work / OPERATORS).read_text(encoding="utf-8")
    sources = ", ".join(path.name for path in [*graphs, *listed_too])
    lines = [line for line in operators.splitlines() if not line.startswith("#")]  # comments name the scratch folder
    (folder / OPERATORS).write_text("\n".join([f"# Generated from {sources}", *lines]) + "\n", encoding="utf-8")
    return written


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """Turn ONNX Runtime's error for a file that cannot be written into UnavailableError."""
    try:
        yield
    except native.Fail as error:
        if "Failed to save" not in str(error):
            raise
        raise UnavailableError(
            "the .ort file cannot be written", where=str(folder), next="free some space; what was committed is kept"
        ) from error
