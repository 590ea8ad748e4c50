"""Make `.ort` bytes reproducible: sort the part that ONNX Runtime writes in the order of a hash table.

An .ort file is a flatbuffer (onnxruntime's core/flatbuffers/schema/ort.fbs): first the table of operators' type
arguments, whose order varies, then the model, whose bytes are kept.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import flatbuffers
from onnxruntime.tools.ort_format_model.ort_flatbuffers_py.fbs import (
    ArgTypeAndIndex,
    InferenceSession,
    KernelTypeStrArgsEntry,
    KernelTypeStrResolver,
    OpIdKernelTypeStrArgsEntry,
)

_ALIGNMENT = 16
_Arguments = dict[bytes, dict[bytes, list[tuple[int, int]]]]
"""Operator → type parameter → its arguments, each as (kind, index). kind: 0 for an input, 1 for an output."""


def rewrite(path: Path) -> None:
    """Rewrite the file with its operators sorted. Raise ValueError if its layout is unknown."""
    data = path.read_bytes()
    session = InferenceSession.InferenceSession.GetRootAs(data, 0)
    model, resolver = session.Model()._tab.Pos, session.KernelTypeStrResolver()
    start = min(model, model - struct.unpack_from("<i", data, model)[0])  # the table of its fields precedes it
    if resolver is None or resolver._tab.Pos > start:
        raise ValueError(f"{path.name}: the operators' types do not precede the model")
    builder = flatbuffers.Builder(len(data) + 4096)
    tail = data[start:]
    builder.head = len(builder.Bytes) - len(tail)
    builder.Bytes[builder.head :] = tail
    builder.minalign = _ALIGNMENT  # the model's tables are aligned relative to the file's end
    version = builder.CreateString(session.OrtVersion())
    operators = _write(builder, _read(resolver))
    InferenceSession.Start(builder)
    InferenceSession.AddOrtVersion(builder, version)
    InferenceSession.AddModel(builder, len(data) - model)
    InferenceSession.AddKernelTypeStrResolver(builder, operators)
    builder.Finish(InferenceSession.End(builder), file_identifier=data[4:8])
    path.write_bytes(builder.Output())


def _read(resolver: Any) -> _Arguments:
    operators = [resolver.OpKernelTypeStrArgs(at) for at in range(resolver.OpKernelTypeStrArgsLength())]
    return {operator.OpId(): _types(operator) for operator in operators}


def _types(operator: Any) -> dict[bytes, list[tuple[int, int]]]:
    entries = [operator.KernelTypeStrArgs(at) for at in range(operator.KernelTypeStrArgsLength())]
    return {
        entry.KernelTypeStr(): [(entry.Args(at).ArgType(), entry.Args(at).Index()) for at in range(entry.ArgsLength())]
        for entry in entries
    }


def _write(builder: flatbuffers.Builder, operators: _Arguments) -> int:
    written = []
    for operator in sorted(operators):
        types = [_write_type(builder, name, places) for name, places in sorted(operators[operator].items())]
        name, arguments = builder.CreateString(operator), _vector(builder, types)
        OpIdKernelTypeStrArgsEntry.Start(builder)
        OpIdKernelTypeStrArgsEntry.AddOpId(builder, name)
        OpIdKernelTypeStrArgsEntry.AddKernelTypeStrArgs(builder, arguments)
        written.append(OpIdKernelTypeStrArgsEntry.End(builder))
    entries = _vector(builder, written)
    KernelTypeStrResolver.Start(builder)
    KernelTypeStrResolver.AddOpKernelTypeStrArgs(builder, entries)
    offset: int = KernelTypeStrResolver.End(builder)
    return offset


def _write_type(builder: flatbuffers.Builder, name: bytes, places: list[tuple[int, int]]) -> int:
    arguments = []
    for kind, index in places:
        ArgTypeAndIndex.Start(builder)
        ArgTypeAndIndex.AddArgType(builder, kind)
        ArgTypeAndIndex.AddIndex(builder, index)
        arguments.append(ArgTypeAndIndex.End(builder))
    label, vector = builder.CreateString(name), _vector(builder, arguments)
    KernelTypeStrArgsEntry.Start(builder)
    KernelTypeStrArgsEntry.AddKernelTypeStr(builder, label)
    KernelTypeStrArgsEntry.AddArgs(builder, vector)
    offset: int = KernelTypeStrArgsEntry.End(builder)
    return offset


def _vector(builder: flatbuffers.Builder, offsets: list[int]) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    end: int = builder.EndVector()
    return end
