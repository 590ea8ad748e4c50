"""Writes corpus/bundles, corpus/onnx and corpus/genai: `python -m tests.hostile.make_bundles`."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CORPUS = Path(__file__).parent / "corpus"
LISTING = b'{"format": "distillctl bundle 2"}\n'
LINK, DEVICE, FOLDER = 0o120777 << 16, 0o020666 << 16, 0o040755 << 16


def entry(name: str, mode: int = 0o100644 << 16) -> zipfile.ZipInfo:
    found = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    found.create_system, found.external_attr = 3, mode
    return found


def archive(
    *entries: tuple[str | zipfile.ZipInfo, bytes], comment: bytes = b"", method: int = zipfile.ZIP_STORED
) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", method) as made:
        made.comment = comment
        for name, data in entries:
            made.writestr(entry(name) if isinstance(name, str) else name, data, method)
    return sink.getvalue()


def patched(data: bytes, mark: bytes, offset: int, value: bytes, *, last: bool = False) -> bytes:
    """With ``value`` at ``offset`` behind the first (last) ``mark``: PK\\1\\2 an entry of the table, PK\\5\\6 its end."""
    at = (data.rfind if last else data.find)(mark) + offset
    return data[:at] + value + data[at + len(value) :]


def overlapping(copies: int) -> bytes:
    """One stored file that so many entries of the table of contents point to."""
    data = b"a" * 5000
    local = (
        struct.pack("<4sHHHHHIIIHH", b"PK\3\4", 20, 0, 0, 0, 33, zlib.crc32(data), len(data), len(data), 1, 0)
        + b"0"
        + data
    )
    table = b""
    for number in range(copies):
        name = f"f{number}".encode()
        table += struct.pack("<4sHHHHHHIIIHHHHHII", b"PK\1\2", 0x314, 20, 0, 0, 0, 33, zlib.crc32(data), len(data), len(data),
                             len(name), 0, 0, 0, 0, 0o100644 << 16, 0) + name  # fmt: skip
    return local + table + struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, copies, copies, len(table), len(local), 0)


def bundles() -> dict[str, bytes]:
    """Archives."""
    listing = ("bundle.json", LISTING)
    whole = archive(listing, ("model.onnx", b"\x08\x0a" * 40))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as made:
        made.writestr(entry("bundle.json"), LISTING)
        made.writestr(entry("zeros"), b"\0" * 9_000_000, zipfile.ZIP_DEFLATED, 9)
    bz2 = archive(listing, ("zeros", b"\0" * 90_000_000), method=zipfile.ZIP_BZIP2)
    lzma = archive(listing, ("zeros", b"\0" * 90_000_000), method=zipfile.ZIP_LZMA)
    deep = "a/" * 900 + "b"
    return {
        "goes-up": archive(listing, ("../outside/pwned", b"x")),
        "goes-up-inside": archive(listing, ("a/../../outside/pwned", b"x")),
        "goes-up-by-backslashes": archive(listing, ("..\\outside\\pwned", b"x")),
        "absolute": archive(listing, ("/tmp/pwned", b"x")),
        "absolute-of-two-slashes": archive(listing, ("//tmp/pwned", b"x")),
        "drive-letter": archive(listing, ("C:pwned", b"x")),
        "stream-of-ntfs": archive(listing, ("model.onnx:hidden", b"x")),
        "home": archive(listing, ("~/pwned", b"x")),
        "name-empty": archive(listing, (entry("x"), b"x")).replace(b"x", b"", 0).replace(b"\1\0\0\0x", b"\0\0\0\0x"),
        "name-of-dots": archive(listing, ("./.", b"x")),
        "name-nul": archive(listing, ("model.onnx\0.txt", b"x")),
        "name-nul-in-the-table": whole.replace(b"model.onnx", b"mode\0.onnx"),
        "name-of-300-letters": archive(listing, ("a" * 300, b"x")),
        "name-of-9000-letters": archive(listing, ("a" * 5000, b"x")),
        "name-900-folders-deep": archive(listing, (deep, b"x")),
        "name-of-escape-codes": archive(listing, ("\x1b[2J\x1b]0;pwned\x07", b"x")),
        "name-right-to-left": archive(listing, ("model\u202exnno.txt", b"x")),
        "name-of-no-utf8": whole.replace(b"model.onnx", b"mod\xff\xfe.onnx"[:10]),
        "name-utf8-flagged-and-broken": patched(whole, b"PK\1\2", 8, b"\0\x08").replace(b"model.onnx", b"mod\xff\xfeonnx"),
        "names-differ-in-table-and-file": whole.replace(b"model.onnx", b"other.onnx", 1),
        "names-differ-in-case": archive(listing, ("Model.onnx", b"x"), ("model.onnx", b"y")),
        "names-differ-in-composition": archive(listing, ("caf\u00e9", b"x"), ("cafe\u0301", b"y")),
        "names-twice": archive(listing, ("a", b"x"), ("b", b"y")).replace(b"b", b"a", 0) + b"",
        "names-listing-twice": archive(listing, ("bundle.jsom", b"y")).replace(b"bundle.jsom", b"bundle.json"),
        "name-a-file-and-a-folder": archive(listing, ("a", b"x"), ("a/b", b"y")),
        "name-a-folder-and-a-file": archive(listing, ("a/b", b"y"), ("a", b"x")),
        "name-a-device-of-windows": archive(listing, ("NUL", b"x"), ("aux.txt", b"y")),
        "link": archive(listing, (entry("model.onnx", LINK), b"../../outside/secret.txt")),
        "link-then-through-it": archive(listing, (entry("a", LINK), b"../outside"), ("a/pwned", b"x")),
        "link-to-itself": archive((entry("bundle.json", LINK), b"bundle.json")),
        "device": archive(listing, (entry("model.onnx", DEVICE), b"")),
        "folder-entry": archive(listing, (entry("a/", FOLDER), b"")),
        "set-user-id": archive(listing, (entry("model.onnx", 0o104777 << 16), b"x")),
        "packed-bomb": packed.getvalue(),
        "packed-bomb-bzip2": bz2,
        "packed-bomb-lzma": lzma,
        "packed-twice": archive(listing, ("inner.zip", packed.getvalue()[:9000]), method=zipfile.ZIP_DEFLATED),
        "method-unknown": patched(whole, b"PK\1\2", 10, b"\x63\0"),
        "method-differs-in-the-file": patched(whole, b"PK\3\4", 8, b"\x08\0"),
        "encrypted": patched(patched(whole, b"PK\1\2", 8, b"\1\0"), b"PK\3\4", 6, b"\1\0"),
        "encrypted-strongly": patched(whole, b"PK\1\2", 8, b"\x41\0"),
        "sizes-lie-more": patched(patched(whole, b"PK\1\2", 20, b"\xf0\xff\xff\x7f"), b"PK\1\2", 24, b"\xf0\xff\xff\x7f"),
        "sizes-lie-less": patched(patched(whole, b"PK\1\2", 20, b"\1\0\0\0"), b"PK\1\2", 24, b"\1\0\0\0"),
        "sizes-of-zip64-without-it": patched(patched(whole, b"PK\1\2", 20, b"\xff" * 4), b"PK\1\2", 24, b"\xff" * 4),
        "offset-outside": patched(whole, b"PK\1\2", 42, b"\xf0\xff\xff\x7f"),
        "offset-of-the-other-file": patched(whole, b"PK\1\2", 42, b"\0\0\0\0", last=True),
        "checksum-wrong": patched(whole, b"PK\1\2", 16, b"\1\2\3\4"),
        "overlapping": overlapping(60),
        "overlapping-hundreds": overlapping(90),
        "entries-thousands-empty": archive(*((f"{number:x}", b"") for number in range(90))),
        "entries-counted-beyond": patched(whole, b"PK\5\6", 8, b"\xff\xff\xff\xff"),
        "entries-counted-less": patched(whole, b"PK\5\6", 8, b"\1\0\1\0"),
        "table-outside": patched(whole, b"PK\5\6", 12, b"\xff\xff\xff\x7f\xff\xff\xff\x7f"),
        "table-of-no-entries": patched(whole, b"PK\1\2", 0, b"XX\1\2"),
        "disk-of-many": patched(whole, b"PK\5\6", 4, b"\2\0\2\0"),
        "comment-of-60000": archive(listing, comment=b"c" * 5_000),
        "comment-with-another-end": archive(listing, comment=b"PK\5\6" + b"\0" * 18),
        "behind-a-program": b"MZ" + b"\0" * 4000 + whole,
        "garbage-after": whole + b"garbage" * 100,
        "two-archives": whole + whole,
        "cut": whole[:-30],
        "cut-early": whole[:60],
        "only-the-end": b"PK\5\6" + b"\0" * 18,
        "empty": b"",
        "no-listing": archive(("model.onnx", b"x")),
        "listing-of-spaces": archive(("bundle.json", b" " * 6_000)),
        "tar-not-zip": b"bundle.json" + b"\0" * 600,
        "random-bytes": bytes((i * 73 + 11) % 256 for i in range(4000)),
    }  # fmt: skip


# ── graphs ───────────────────────────────────────────────────────────────────────────────────────


def outer(name: str, dims: list[int], kind: int = TensorProto.FLOAT, **said: str | int) -> onnx.TensorProto:
    """A tensor whose data lie elsewhere."""
    tensor = TensorProto(name=name, dims=dims, data_type=kind, data_location=TensorProto.EXTERNAL)
    for key, value in said.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def inner(name: str, dims: list[int], data: bytes, kind: int = TensorProto.FLOAT) -> onnx.TensorProto:
    return TensorProto(name=name, dims=dims, data_type=kind, raw_data=data)


def graph(
    *tensors: onnx.TensorProto, nodes: list[onnx.NodeProto] | None = None, opset: int = 18, **other: object
) -> bytes:
    """Logits of three labels, from the mean of the mask and what ``tensors`` hold (`weights`: [1, 3])."""
    held = list(tensors) or [numpy_helper.from_array(np.ones((1, 3), np.float32), "weights")]
    made = helper.make_graph(
        nodes or [
            helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["mask"], ["mean"], keepdims=1),
            helper.make_node("MatMul", ["mean", "weights"], ["logits"]),
        ],
        "hostile",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"])
         for name in ("input_ids", "attention_mask", "token_type_ids")],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        held,
    )  # fmt: skip
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=10, **other)
    return model.SerializeToString()


def deep(levels: int) -> bytes:
    """An If within an If within an If …"""
    body = helper.make_graph([helper.make_node("Identity", ["weights"], ["logits"])], "g", [], [])
    for _ in range(levels):
        node = helper.make_node(
            "If", ["c"], ["logits"], then_branch=body, else_branch=helper.make_graph([], "e", [], [])
        )
        body = helper.make_graph([node], "g", [], [])
    return graph(nodes=list(body.node))


def repeated(count: int) -> list[onnx.NodeProto]:
    """Concat of a thing with itself, again and again."""
    nodes = [helper.make_node("Concat", ["weights"] * 16, ["c0"], axis=0)]
    nodes += [helper.make_node("Concat", [f"c{i}"] * 16, [f"c{i + 1}"], axis=0) for i in range(count)]
    return [*nodes, helper.make_node("Identity", [f"c{count}"], ["logits"])]


def graphs() -> dict[str, bytes]:
    """In the place of the exported model.onnx; beside.bin of 64 bytes is there, and links that lead out."""
    shape = [1, 3]
    whole = graph()
    huge = numpy_helper.from_array(np.array([2**31, 2**31], np.int64), "weights")
    return {
        "data-goes-up": graph(outer("weights", shape, location="../../../outside/weights.bin")),
        "data-goes-up-inside": graph(outer("weights", shape, location="folder/../../../../outside/weights.bin")),
        "data-absolute": graph(outer("weights", shape, location="/etc/passwd")),
        "data-by-a-link": graph(outer("weights", shape, location="link.bin")),
        "data-through-a-linked-folder": graph(outer("weights", shape, location="folder/weights.bin")),
        "data-in-a-device": graph(outer("weights", shape, location="/dev/zero")),
        "data-in-standard-input": graph(outer("weights", shape, location="/dev/stdin")),
        "data-in-itself": graph(outer("weights", shape, location="model.onnx")),
        "data-nowhere": graph(outer("weights", shape)),
        "data-missing": graph(outer("weights", shape, location="none.bin")),
        "data-in-a-folder": graph(outer("weights", shape, location=".")),
        "data-empty-name": graph(outer("weights", shape, location="")),
        "data-backslashes": graph(outer("weights", shape, location="..\\..\\outside\\weights.bin")),
        "data-by-an-address": graph(outer("weights", shape, location="http://127.0.0.1:9/x")),
        "data-in-memory": graph(outer("weights", shape, location="*/_ORT_MEM_ADDR_/*", offset=4096, length=12)),
        "data-name-nul": graph(outer("weights", shape, location="beside.bin\0/../../x")),
        "data-name-of-9000-letters": graph(outer("weights", shape, location="a" * 5000)),
        "data-offset-beyond": graph(outer("weights", shape, location="beside.bin", offset=2**40, length=12)),
        "data-offset-below-nothing": graph(outer("weights", shape, location="beside.bin", offset=-4096, length=12)),
        "data-offset-no-number": graph(outer("weights", shape, location="beside.bin", offset="abc")),
        "data-length-beyond": graph(outer("weights", [2**20, 2**10], location="beside.bin", length=2**32)),
        "data-length-below-nothing": graph(outer("weights", shape, location="beside.bin", length=-1)),
        "data-length-differs": graph(outer("weights", shape, location="beside.bin", length=4)),
        "data-shape-beyond-its-file": graph(outer("weights", [2**30, 2**10], location="beside.bin")),
        "data-key-unknown": graph(outer("weights", shape, location="beside.bin", secret="../x")),
        "data-of-an-attribute": graph(nodes=[helper.make_node("Constant", [], ["logits"], value=outer("v", shape, location="../../../outside/weights.bin"))]),
        "data-of-a-sparse-attribute": graph(nodes=[helper.make_node("Constant", [], ["logits"], value=outer("v", shape, location="folder/weights.bin"))]),
        "shape-beyond": graph(inner("weights", [2**40, 3], b"\0" * 12)),
        "shape-below-nothing": graph(inner("weights", [-1, 3], b"\0" * 12)),
        "shape-that-wraps-around": graph(inner("weights", [2**32, 2**32], b"")),
        "shape-zero": graph(inner("weights", [0, 3], b"")),
        "shape-differs": graph(inner("weights", [1, 3], b"\0" * 400)),
        "kind-unknown": graph(inner("weights", shape, b"\0" * 12, kind=99)),
        "kind-a-text": graph(TensorProto(name="weights", dims=shape, data_type=TensorProto.STRING, string_data=[b"a"] * 3)),
        "bomb-constant-of-shape": graph(huge, nodes=[helper.make_node("ConstantOfShape", ["weights"], ["logits"])]),
        "bomb-expand": graph(huge, nodes=[helper.make_node("Expand", ["attention_mask", "weights"], ["logits"])]),
        "bomb-tile": graph(huge, nodes=[helper.make_node("Tile", ["attention_mask", "weights"], ["logits"])]),
        "bomb-range": graph(inner("weights", [], struct.pack("<q", 2**40), TensorProto.INT64), nodes=[
            helper.make_node("Sub", ["weights", "weights"], ["zero"]), helper.make_node("Div", ["weights", "weights"], ["one"]),
            helper.make_node("Range", ["zero", "weights", "one"], ["logits"])]),
        "bomb-concat": graph(nodes=repeated(8)),
        "bomb-loop": graph(inner("weights", [], struct.pack("<q", 2**60), TensorProto.INT64), nodes=[
            helper.make_node("Loop", ["weights", "", "attention_mask"], ["logits"], body=helper.make_graph(
                [helper.make_node("Identity", ["b"], ["d"]), helper.make_node("Identity", ["c"], ["e"])], "body",
                [helper.make_tensor_value_info("a", TensorProto.INT64, []), helper.make_tensor_value_info("b", TensorProto.BOOL, []),
                 helper.make_tensor_value_info("c", TensorProto.INT64, None)],
                [helper.make_tensor_value_info("d", TensorProto.BOOL, []), helper.make_tensor_value_info("e", TensorProto.INT64, None)]))]),
        "nested-ifs": deep(20),
        "nodes-in-a-circle": graph(nodes=[helper.make_node("Identity", ["a"], ["b"]), helper.make_node("Identity", ["b"], ["a"]), helper.make_node("Identity", ["a"], ["logits"])]),
        "node-unknown": graph(nodes=[helper.make_node("Shell", ["input_ids"], ["logits"])]),
        "node-of-python": graph(nodes=[helper.make_node("PyOp", ["input_ids"], ["logits"], domain="ai.onnx.contrib", code="import os")]),
        "nodes-none": graph(nodes=[helper.make_node("Identity", ["nothing"], ["logits"])]),
        "names-twice": graph(numpy_helper.from_array(np.ones(3, np.float32), "weights"), numpy_helper.from_array(np.ones(3, np.float32), "weights")),
        "names-of-escape-codes": graph(nodes=[helper.make_node("\x1b[2JShell", ["\x1b]0;x\x07"], ["logits"])]),
        "logits-of-four": graph(numpy_helper.from_array(np.ones((1, 4), np.float32), "weights")),
        "logits-nan": graph(numpy_helper.from_array(np.full((1, 3), np.nan, np.float32), "weights")),
        "logits-missing": whole.replace(b"logits", b"legits"),
        "inputs-other": whole.replace(b"input_ids", b"outpu_ids"),
        "opset-beyond": graph(opset=9999),
        "cut": whole[: len(whole) // 2],
        "flipped": whole[:40] + bytes([whole[40] ^ 0x80]) + whole[41:],
        "length-beyond": b"\x08\x0a\x3a\xff\xff\xff\xff\x7f" + whole,
        "groups-nested": b"\x0b" * 5000,
        "empty": b"",
        "text": b"ir_version: 10",
        "a-pickle": b"\x80\x04cos\nsystem\n(Vtouch ../outside/pwned\ntR.",
        "loop-in-an-if": repeating(within_ifs(loop())),
        "loop-in-nine-ifs": repeating(within_ifs(loop(), 9)),
        "loop-in-a-loop-in-an-if": repeating(within_ifs(loop(loop("d")))),
        "scan-in-an-if": repeating(within_ifs(scan())),
        "sequence-map-in-an-if": repeating(within_ifs(helper.make_node("SequenceMap", ["attention_mask"], ["logits"]))),
        "search-in-an-if": repeating(within_ifs(helper.make_node("GreedySearch", ["attention_mask"], ["logits"], domain="com.microsoft"))),
        "loop-in-a-function": repeating(call("f"), function("f", loop("out"))),
        "loop-in-an-if-in-a-function": repeating(call("f"), function("f", within_ifs(loop("out")))),
        "loop-in-a-function-of-a-function": repeating(call("g"), function("f", within_ifs(loop("out"))), function("g", call("f", "out"))),
        "loop-in-a-function-called-in-an-if": repeating(within_ifs(call("f")), function("f", loop("out"))),
        "loop-in-a-list-of-graphs": repeating(helper.make_node("Strange", ["attention_mask"], ["logits"], domain="strange", branches=[helper.make_graph([loop()], "g", [], [])])),
        "function-of-itself": repeating(call("f"), function("f", call("f", "out"))),
        "expand-in-an-if": repeating(within_ifs(helper.make_node("Expand", ["one", "huge"], ["logits"]))),
        "data-in-an-if": repeating(within_ifs(helper.make_node("Constant", [], ["logits"], value=outer("v", shape, location="/etc/passwd")))),
        "data-in-a-function": repeating(call("f"), function("f", within_ifs(helper.make_node("Constant", [], ["out"], value=outer("v", shape, location="../../../outside/weights.bin"))))),
    }  # fmt: skip


def loop(result: str | onnx.NodeProto = "logits") -> onnx.NodeProto:
    """A Loop without end; of a node, one that has it inside."""
    kind, node = TensorProto.INT64, helper.make_node("Identity", ["b"], ["d"])
    if isinstance(result, onnx.NodeProto):
        node, result = result, "logits"
    body = helper.make_graph(
        [node, helper.make_node("Identity", ["c"], ["e"])], "body",
        [helper.make_tensor_value_info("a", kind, []), helper.make_tensor_value_info("b", TensorProto.BOOL, []),
         helper.make_tensor_value_info("c", kind, None)],
        [helper.make_tensor_value_info("d", TensorProto.BOOL, []), helper.make_tensor_value_info("e", kind, None)],
    )  # fmt: skip
    return helper.make_node("Loop", ["", "true", "attention_mask"], [result], body=body)


def scan() -> onnx.NodeProto:
    value = [helper.make_tensor_value_info(name, TensorProto.INT64, None) for name in "ab"]
    body = helper.make_graph([helper.make_node("Identity", ["a"], ["b"])], "body", value[:1], value[1:])
    return helper.make_node("Scan", ["attention_mask"], ["logits"], body=body, num_scan_inputs=1)


def within_ifs(node: onnx.NodeProto, levels: int = 1) -> onnx.NodeProto:
    result = node.output[0]
    for level in range(levels):
        kind = helper.make_tensor_value_info(result, TensorProto.FLOAT, None)
        other = helper.make_node("Cast", ["attention_mask"], [result], to=TensorProto.FLOAT)
        branches = [helper.make_graph([inside], f"g{level}", [], [kind]) for inside in (node, other)]
        node = helper.make_node("If", ["true"], [result], then_branch=branches[0], else_branch=branches[1])
    return node


def function(name: str, node: onnx.NodeProto) -> onnx.FunctionProto:
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("strange", 1)]
    return helper.make_function("strange", name, ["attention_mask", "true"], ["out"], [node], opsets)


def call(name: str, result: str = "logits") -> onnx.NodeProto:
    return helper.make_node(name, ["attention_mask", "true"], [result], domain="strange")


def repeating(node: onnx.NodeProto, *functions: onnx.FunctionProto) -> bytes:
    held = {"true": np.array(True), "one": np.ones(1, np.float32), "huge": np.array([2**20, 2**20], np.int64)}
    model = onnx.ModelProto.FromString(
        graph(*(numpy_helper.from_array(value, name) for name, value in held.items()), nodes=[node])
    )
    model.functions.extend(functions)
    model.opset_import.extend([helper.make_opsetid("strange", 1), helper.make_opsetid("com.microsoft", 1)])
    return model.SerializeToString()


def settings() -> dict[str, bytes]:
    """genai_config.json beside a graph: what onnxruntime-genai would load besides it."""
    decoder = {"filename": "model.onnx", "session_options": {"log_id": "x", "provider_options": []}}

    def config(**changes: Any) -> bytes:
        return json.dumps({"model": {"decoder": {**decoder, **changes}}}).encode()

    return {
        "library": config(session_options={"custom_ops_library": "evil.so"}),
        "library-elsewhere": config(session_options={"custom_ops_library": "/tmp/evil.so"}),
        "library-of-a-stage": config(pipeline=[{"a": {"session_options": {"custom_ops_library": "evil.so"}}}]),
        "provider-with-a-library": config(session_options={"provider_options": [{"qnn": {"backend_path": "evil.so"}}]}),
        "graph-goes-up": config(filename="../../../outside/weights.bin"),
        "graph-absolute": config(filename="/etc/passwd"),
        "graph-by-a-link": config(filename="link.bin"),
        "graph-missing": config(filename="none.onnx"),
        "graph-a-list": config(filename=["model.onnx"]),
        "empty": b"",
        "not-json": b"x",
        "deep": b"[" * 3000,
        "ok-as-built": config(),
    }


def main() -> None:
    makers: dict[str, tuple[Callable[[], dict[str, bytes]], str]] = {
        "bundles": (bundles, "zip"),
        "onnx": (graphs, "onnx"),
        "genai": (settings, "json"),
    }
    for name, (maker, ending) in makers.items():
        folder = CORPUS / name
        folder.mkdir(parents=True, exist_ok=True)
        for number, (what, data) in enumerate(maker().items(), 1):
            assert len(data) < 20_000, (what, len(data))
            (folder / f"{number:03d}-{what}.{ending}").write_bytes(data)


if __name__ == "__main__":
    main()
