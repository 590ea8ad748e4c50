"""Writes corpus/parquet, corpus/shards, corpus/tables: `python -m tests.hostile.make_parquet`."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

CORPUS = Path(__file__).parent / "corpus"
TEXTS = [f"who wrote the book of {name}" for name in ["river", "king", "city", "sea", "old", "young", "long", "far"]]
ROWS = {"input": TEXTS, "reference": ["person"] * len(TEXTS)}
MAGIC = b"PAR1"
ROW_COUNT = 24
"""Rows of the run that shards and tables are put into (`base.ROWS`)."""


def packed(table: pa.Table | dict[str, Any], **options: Any) -> bytes:
    sink = io.BytesIO()
    table = pa.table(table) if isinstance(table, dict) else table
    level = {} if "compression" in options else {"compression": "zstd", "compression_level": 9}
    pq.write_table(table, sink, **{**level, **options})
    return sink.getvalue()


def footer(data: bytes) -> tuple[bytes, bytes]:
    """Pages and metadata of a file."""
    length = int.from_bytes(data[-8:-4], "little")
    return data[: -8 - length], data[-8 - length : -8]


def with_footer(pages: bytes, metadata: bytes, length: int | None = None) -> bytes:
    said = len(metadata) if length is None else length
    return pages + metadata + said.to_bytes(4, "little") + MAGIC


def varint(value: int) -> bytes:
    """A signed number in thrift's compact protocol."""
    value, out = (value << 1) ^ (value >> 63), b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def lying(data: bytes, true: int, told: int, *, last: bool = False) -> bytes:
    """With the first (last) occurrence in the footer of a number replaced by another."""
    pages, metadata = footer(data)
    at = (metadata.rfind if last else metadata.find)(b"\x16" + varint(true))
    assert at > 0
    return with_footer(pages, metadata[: at + 1] + varint(told) + metadata[at + 1 + len(varint(true)) :])


def flipped(data: bytes, at: int, bit: int = 3) -> bytes:
    return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]


def page_lies(data: bytes, unpacked: int) -> bytes:
    """The first page says that it is so long when unpacked. A PageHeader begins with its type and then that size."""
    at = 4
    assert data[at] == 0x15
    after = at + 2
    assert data[after] == 0x15
    end = after + 1
    while data[end] & 128:
        end += 1
    pages, metadata = footer(data)
    return with_footer(pages[: after + 1] + varint(unpacked) + pages[end + 1 :], metadata)


def rows() -> dict[str, bytes]:
    """Files of data."""
    whole = packed(ROWS)
    checked = packed(ROWS, write_page_checksum=True, compression="none", use_dictionary=False)
    n = len(TEXTS)
    long = "who " * 2_000_000
    dictionary = pa.DictionaryArray.from_arrays(pa.array([0] * 100_000, pa.int32()), pa.array([long]))
    once = pa.DictionaryArray.from_arrays(pa.array([0] * 300_000, pa.int32()), pa.array(["who " * 20_000]))
    listed = pa.ListArray.from_arrays(pa.array(range(0, 300_001, 1000), pa.int32()), once)
    dates = pa.array([2**60] * n, pa.timestamp("us"))
    deep: pa.Array = pa.array(TEXTS)
    for _ in range(40):
        deep = pa.ListArray.from_arrays(pa.array(range(n + 1), pa.int32()), deep)
    return {
        "ok-whole": whole,
        "ok-dictionary": packed(pa.table(ROWS).set_column(0, "input", pa.array(TEXTS).dictionary_encode())),
        "ok-large-strings": packed(pa.table(ROWS).cast(pa.schema([("input", pa.large_string()), ("reference", pa.string())]))),
        "ok-columns-nobody-reads": packed({**ROWS, "when": dates, "deep": deep}),
        "ok-version-two-pages": packed(ROWS, data_page_version="2.0", compression="snappy"),
        "no-rows": packed({"input": pa.array([], pa.string())}),
        "no-columns": packed(pa.table({}).select([])),
        "no-input-column": packed({"text": TEXTS}),
        "input-a-number": packed({"input": list(range(n))}),
        "input-null": packed({"input": pa.nulls(n, pa.string())}),
        "input-a-date": packed({"input": dates}),
        "input-bytes": packed({"input": [b"\xff\xfe"] * n}),
        "input-a-list": packed({"input": [TEXTS]}),
        "input-a-struct": packed({"input": [{"a": {"b": "c"}}] * n}),
        "input-a-map": packed({"input": pa.array([[("a", 1)]] * n, pa.map_(pa.string(), pa.int32()))}),
        "input-of-no-utf8": packed(pa.table({"input": pa.array([b"\xff\xfe"] * n)})).replace(b"ARROW:schema", b"arrow:schema"),
        "input-forty-lists-deep": packed({"input": deep}),
        "input-twice": packed(pa.table([pa.array(TEXTS), pa.array(TEXTS)], ["input", "input"])),
        "reference-a-date-beyond": packed({"input": TEXTS, "reference": dates}),
        "reference-a-decimal": packed({"input": TEXTS, "reference": pa.array([10**30] * n, pa.decimal256(60))}),
        "one-text-for-100000-rows": packed({"input": dictionary}),
        "one-long-row": packed({"input": ["who " * 5_000_000]}, use_dictionary=False),
        "one-text-in-all-lists": packed({"input": TEXTS + [f"{t}s" for t in range(292)], "documents": listed}),
        "zeros-240-mb": packed({"input": ["\0" * 120_000_000] * 2}, use_dictionary=False),
        "zeros-that-nobody-reads": packed({**ROWS, "documents": ["\0" * 30_000_000] * n}, use_dictionary=False),
        "equal-rows-two-million": packed({"input": pa.DictionaryArray.from_arrays(pa.array(np.zeros(2_000_000, np.int32)), pa.array(["who"]))}),
        "nulls-two-million": packed({"input": pa.nulls(2_000_000, pa.string())}),
        "rows-lie-more": lying(whole, n, 2**40, last=True),
        "rows-lie-below-nothing": lying(whole, n, -1, last=True),
        "values-lie": lying(whole, n, 2**40),
        "page-says-two-gigabytes": page_lies(whole, 2**31 - 1),
        "page-says-less": page_lies(whole, 3),
        "page-says-below-nothing": page_lies(whole, -5),
        "page-header-of-ones": whole[:4] + b"\xff" * 40 + whole[44:],
        "page-header-of-other-kinds": whole[:4] + b"\x22" + whole[5:],
        "page-header-of-zeros": whole[:4] + b"\0" * 40 + whole[44:],
        "page-flipped": flipped(checked, 60),
        "ok-footer-flipped-in-a-comment": flipped(whole, len(whole) - 60),
        "footer-flipped-early": flipped(whole, len(whole) - len(footer(whole)[1]) - 4),
        "footer-longer-than-the-file": with_footer(*footer(whole), 2**31 - 1),
        "footer-of-no-length": with_footer(*footer(whole), 0),
        "footer-of-half": with_footer(footer(whole)[0], footer(whole)[1][:40]),
        "footer-of-nested-structs": with_footer(footer(whole)[0], b"\x1c" * 5000),
        "footer-says-a-list-of-two-billion": with_footer(footer(whole)[0], b"\x15\x02\x19\xfc\xff\xff\xff\xff\x07"),
        "footer-says-a-text-of-two-billion": with_footer(footer(whole)[0], b"\x15\x02\x18\xff\xff\xff\xff\x07"),
        "cut-in-the-middle": whole[: len(whole) // 2],
        "cut-at-the-magic": whole[:-4],
        "only-magic": MAGIC + MAGIC,
        "encrypted-magic": whole[:-4] + b"PARE",
        "empty": b"",
        "arrow-not-parquet": b"ARROW1\0\0" + b"\xff" * 64,
        "schema-key-of-garbage": packed(pa.table(ROWS)).replace(b"/////", b"!!!!!"),
    }  # fmt: skip


def shards() -> dict[str, bytes]:
    """In the place of the one shard of train rows."""
    ids = [f"row-{n}" for n in range(ROW_COUNT)]

    def shard(log_probs: Any, mass: Any = None, id: Any = None) -> bytes:
        return packed({"id": ids if id is None else id, "label_log_probs": log_probs,
                       "label_mass": pa.array([0.5] * ROW_COUNT, pa.float32()) if mass is None else mass})  # fmt: skip

    fixed = pa.array([[-1.0, -1.1, -1.2]] * ROW_COUNT, pa.list_(pa.float32(), 3))
    whole = shard(fixed)
    return {
        "of-other-rows": shard(fixed, id=[f"other-{n}" for n in range(ROW_COUNT)]),
        "ok-of-more-rows": whole,
        "ids-null": shard(fixed, id=pa.nulls(ROW_COUNT, pa.string())),
        "ids-numbers": shard(fixed, id=list(range(ROW_COUNT))),
        "ids-twice": shard(fixed, id=["row"] * ROW_COUNT),
        "ids-a-long-text": packed({"id": pa.DictionaryArray.from_arrays(pa.array([0] * 99_999, pa.int32()), pa.array(["a" * 5_000_000])),
                                   "label_log_probs": pa.nulls(99_999, pa.list_(pa.float32(), 3)), "label_mass": pa.nulls(99_999, pa.float32())}),
        "labels-text": shard(["a"] * ROW_COUNT),
        "labels-lists-of-unlike-length": shard([[-1.0]] * (ROW_COUNT - 1) + [[-1.0, -2.0]]),
        "labels-null": shard(pa.nulls(ROW_COUNT, pa.list_(pa.float32(), 3))),
        "labels-of-width-zero": shard(pa.array([[]] * ROW_COUNT, pa.list_(pa.float32(), 0))),
        "labels-of-width-one": shard(pa.array([[-1.0]] * ROW_COUNT, pa.list_(pa.float32(), 1))),
        "labels-nan": shard(pa.array([[float("nan")] * 3] * ROW_COUNT, pa.list_(pa.float32(), 3))),
        "labels-a-hundred-million-zeros": packed({"id": ["row"], "label_log_probs": pa.array([np.zeros(20_000_000, np.float32)], pa.list_(pa.float32())), "label_mass": pa.nulls(1, pa.float32())}),
        "ok-mass-text": shard(fixed, mass=["a"] * ROW_COUNT),
        "no-mass": packed({"id": ids, "label_log_probs": fixed}),
        "no-rows": packed({"id": pa.array([], pa.string()), "label_log_probs": pa.array([], pa.list_(pa.float32(), 3)), "label_mass": pa.array([], pa.float32())}),
        "flipped-page": flipped(packed({"id": ids, "label_log_probs": fixed, "label_mass": pa.array([0.5] * ROW_COUNT, pa.float32())}, write_page_checksum=True, compression="none"), 60),
        "page-says-two-gigabytes": page_lies(whole, 2**31 - 1),
        "rows-lie": lying(whole, ROW_COUNT, 2**40, last=True),
        "cut": whole[:200],
        "empty": b"",
        "not-parquet": b"{}" * 100,
    }  # fmt: skip


def tables() -> dict[str, bytes]:
    """views.parquet, eval.parquet and a bench's samples, by the first word."""
    ids = [f"row-{n}" for n in range(ROW_COUNT)]
    text = dict.fromkeys(("id", "input", "full", "simplified"), ids)
    views = {**text, "split": ["train"] * 12 + ["eval"] * 12, "reference": pa.nulls(ROW_COUNT, pa.string())}
    floats = pa.array([[-1.0, -1.1, -1.2]] * ROW_COUNT, pa.list_(pa.float32()))
    return {
        "views-of-other-rows": packed({**views, "id": [f"other-{n}" for n in range(ROW_COUNT)]}),
        "views-without-a-split": packed(text),
        "views-split-a-number": packed({**views, "split": list(range(ROW_COUNT))}),
        "views-text-a-number": packed({**views, "simplified": list(range(ROW_COUNT))}),
        "views-text-null": packed({**views, "simplified": pa.nulls(ROW_COUNT, pa.string())}),
        "views-one-text-for-all": packed({name: pa.DictionaryArray.from_arrays(pa.array([0] * 9000, pa.int32()), pa.array(["train" if name == "split" else "who " * 200_000])) for name in ("id", "split", "input", "reference", "full", "simplified")}),
        "views-no-rows": packed(pa.table(views).slice(0, 0)),
        "views-cut": packed(views)[:300],
        "eval-of-other-rows": packed({"id": [f"other-{n}" for n in range(ROW_COUNT)], "student": floats}),
        "eval-without-ids": packed({"student": floats}),
        "eval-without-a-student": packed({"id": ids}),
        "eval-a-text": packed({"id": ids, "student": ids}),
        "eval-ids-a-date": packed({"id": pa.array([datetime(2020, 1, 1)] * ROW_COUNT), "student": floats}),
        "eval-ids-lists": packed({"id": [[1]] * ROW_COUNT, "student": floats}),
        "eval-of-unlike-lengths": packed({"id": ids, "student": [[1.0]] * (ROW_COUNT - 1) + [[1.0, 2.0]]}),
        "eval-cut": packed({"id": ids, "student": floats})[:200],
        "eval-ok-flipped-footer": flipped(packed({"id": ids, "student": floats}), -40),
        "deployed-of-other-rows": packed({"id": [f"other-{n}" for n in range(ROW_COUNT)], "deployed": floats}),
        "deployed-empty": b"",
        "deployed-column-missing": packed({"id": ids}),
        "samples-a-text": packed({"milliseconds": ids}),
        "samples-without-the-column": packed({"seconds": [1.0]}),
        "samples-none": packed({"milliseconds": pa.array([], pa.float64())}),
        "samples-nan": packed({"milliseconds": [float("nan")] * 4}),
        "samples-cut": packed({"milliseconds": [1.0] * 4})[:100],
        "samples-page-says-two-gigabytes": page_lies(packed({"milliseconds": [1.0] * 4}), 2**31 - 1),
    }  # fmt: skip


def unsealed(table: dict[str, Any]) -> bytes:
    """With zeros where the checksum will be."""
    sink, made = io.BytesIO(), pa.table(table)
    with pq.ParquetWriter(sink, made.schema, store_schema=False, compression="zstd", compression_level=9) as writer:
        writer.write_table(made)
        writer.add_key_value_metadata({"seal": "sha256:" + "0" * 64})
    return sink.getvalue()


def sealed(table: dict[str, Any]) -> bytes:
    """With the checksum in its footer that `distillctl.soft_labels.checksum` looks for: whoever can write the file can put
    it there."""
    mark, zeros = b"sha256:", b"0" * 64
    data = unsealed(table)
    at = data.rfind(mark) + len(mark)
    return data[:at] + hashlib.sha256(data).hexdigest().encode() + data[at + len(zeros) :]


def answers() -> dict[str, bytes]:
    """In the place of the shard of a teacher that writes."""
    ids = [f"row-{n}" for n in range(12)]
    whole = {"id": ids, "sample": pa.array([0] * 12, pa.int32()), "text": ids, "cut": [False] * 12,
             "token_ids": pa.array([[1, 2]] * 12, pa.list_(pa.int32()))}  # fmt: skip
    good = sealed(whole)
    one = pa.DictionaryArray.from_arrays(pa.array([0] * 9000, pa.int32()), pa.array(["who " * 200_000]))
    return {
        "without-a-seal": packed(whole),
        "seal-broken": flipped(good, 40),
        "seal-of-zeros": unsealed(whole),
        "seal-alone": b"sha256:" + b"0" * 64,
        "seal-cut": good[: good.rfind(b"sha256:") + 20],
        "sealed-without-probabilities": good,
        "sealed-without-texts": sealed({"id": ids}),
        "sealed-tokens-a-text": sealed({**whole, "token_ids": ids}),
        "sealed-tokens-null": sealed({**whole, "token_ids": pa.nulls(12, pa.list_(pa.int32()))}),
        "sealed-ids-numbers": sealed({**whole, "id": list(range(12))}),
        "sealed-one-text-for-all": sealed({"id": one, "text": one}),
        "sealed-no-rows": sealed({name: pa.array(column)[:0] if isinstance(column, list) else column[:0] for name, column in whole.items()}),
        "empty": b"",
    }  # fmt: skip


def main() -> None:
    makers: dict[str, Callable[[], dict[str, bytes]]] = {
        "parquet": rows, "shards": shards, "tables": tables, "answers": answers,
    }  # fmt: skip
    for name, maker in makers.items():
        folder = CORPUS / name
        folder.mkdir(parents=True, exist_ok=True)
        for number, (what, data) in enumerate(maker().items(), 1):
            assert len(data) < 20_000, (what, len(data))
            (folder / f"{number:03d}-{what}.parquet").write_bytes(data)


if __name__ == "__main__":
    main()
