"""Read and write a shard's file: Parquet with page checksums and a checksum of all its bytes."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pyarrow as pa

from distillctl.errors import UpstreamError, first_line
from distillctl.run_dir.workspace import replacing
from distillctl.soft_labels import checksum, columns
from distillctl.untrusted import parquet

AGAIN = "distillctl collect RECIPE"


def write(path: Path, table: pa.Table) -> None:
    """Commit a shard atomically."""
    with replacing(path) as temporary:
        columns.write(temporary, table, checksum.METADATA)
        checksum.write_checksum(temporary)


def read(path: Path, names: Collection[str], *, required: bool = True) -> pa.Table:
    """Return those of the named columns that the file has. Raise UpstreamError if any byte of the file is damaged.

    required: False for label shards, which older versions wrote without a checksum of the whole file.
    """
    try:
        return parquet.read(pa.py_buffer(checksum.read_checked(path, required=required)), names)
    except parquet.ERRORS as error:
        raise damaged(path, error) from None


def damaged(path: Path, error: Exception) -> UpstreamError:
    """Return the error for a shard that is not as it was written."""
    return UpstreamError(f"the shard is damaged: {first_line(error)}", where=str(path), next=AGAIN)
