"""Measure how fast memory can be read, which bounds a decoder that reads all its weights in every run."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

FLOATS = 64 * 1024**2
"""256 MB, much larger than any cache."""
_READERS = ("MatMulNBits", "MatMul", "FusedMatMul", "Gemm", "MatMulInteger", "DynamicQuantizeMatMul")


class Memory:
    """A large array, read by numpy's BLAS with the process's threads."""

    def __init__(self) -> None:
        self._array = np.ones(FLOATS, np.float32)

    def bytes_per_second(self) -> float:
        """Time one pass over it."""
        start = time.perf_counter()
        self._array.dot(self._array)
        return self._array.nbytes / (time.perf_counter() - start)


@dataclass(frozen=True)
class Reads:
    """The weights that a decoder reads in a run, and the tokens that each run after the first adds to the answer."""

    bytes_per_run: int
    tokens_per_run: float = 1.0


def bytes_per_run(folder: Path) -> int:
    """Return the bytes of weights that matrix products read in one run, as they lie in memory.

    One row of a looked-up table is ignored. ONNX Runtime computes the Cast of a constant when it loads the graph, so
    the products read its result.
    """
    import onnx_ir  # not at the top: it would count as the memory of a worker that only reads an array

    graph = onnx_ir.load(folder / "model.onnx").graph
    read = {value for node in graph if node.op_type in _READERS for value in node.inputs if value is not None}
    casts = {node for value in read if (node := value.producer()) is not None and node.op_type == "Cast"}
    constants = [value.const_value for value in read if value.const_value is not None]
    return sum(int(constant.nbytes) for constant in constants) + sum(map(_result_bytes, casts))


def _result_bytes(cast: ir.Node) -> int:
    """Return the bytes of the result of a Cast; 0 unless its input is a constant."""
    from onnx_ir import DataType

    constant = cast.inputs[0].const_value if cast.inputs[0] is not None else None
    return 0 if constant is None else int(constant.size * DataType(cast.attributes["to"].as_int()).itemsize)
