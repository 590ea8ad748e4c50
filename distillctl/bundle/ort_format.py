"""`.ort`: ONNX Runtime's own format for phones, and the list of operators that a reduced build of it needs."""

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
"""Of a graph: an .ort file is one flatbuffer, which ends at 2 GiB."""


def convert(folder: Path, *, listed_too: Sequence[Path] = (), library: str | None = None) -> list[str]:
    """Write an `.ort` beside each `.onnx` of ``folder``, and `required_operators_and_types.config`.

    Only the fixed style: optimised once, here, for ARM. The other one keeps what NNAPI and CoreML may leave for later,
    and neither takes these graphs (see `mobile`). listed_too: graphs whose operators are listed without an `.ort` of
    theirs; library: of custom operators. Returns the `.ort` files' names, none for graphs too large for the format.
    """
    graphs = sorted(folder.glob("*.onnx"))
    if graph_bytes(folder) > MAX_BYTES:
        console.warn(f"no .ort: the format ends at 2 GiB, the graphs have {graph_bytes(folder):,} bytes")
        return []
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        own = Path(scratch)
        for path in [*folder.glob("*.onnx*"), *listed_too]:
            shutil.copyfile(path, own / path.name)
        with console.libraries_quiet(), _disk_errors(folder):
            logging.getLogger("ort_format_model.utils").setLevel(logging.WARNING)
            convert_onnx_models_to_ort(
                own,
                optimization_styles=[OptimizationStyle.Fixed],
                custom_op_library_path=Path(library) if library else None,
                target_platform="arm",
                enable_type_reduction=True,
            )
        written = [path.with_suffix(".ort").name for path in graphs]
        for name in written:
            ort_canonical.rewrite(own / name)
            (own / name).replace(folder / name)
        listed = (own / OPERATORS).read_text(encoding="utf-8")
    of = ", ".join(path.name for path in [*graphs, *listed_too])
    lines = [line for line in listed.splitlines() if not line.startswith("#")]  # they name the scratch folder
    (folder / OPERATORS).write_text("\n".join([f"# Generated from {of}", *lines]) + "\n", encoding="utf-8")
    return written


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """Within the block: ONNX Runtime tells a file that it cannot write as an error of its own."""
    try:
        yield
    except native.Fail as error:
        if "Failed to save" not in str(error):
            raise
        raise UnavailableError(
            "the .ort file cannot be written", where=str(folder), next="free some space; what was committed is kept"
        ) from error
