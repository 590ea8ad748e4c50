"""Rows in a file are the rows that went in, and what they have in common is known."""

import os
import tempfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillctl.data import view_table
from distillctl.data.disk_rows import DiskRows
from distillctl.errors import UnavailableError
from distillctl.metrics.statistics import Tally
from distillctl.run_dir.workspace import Workspace
from distillctl.teachers.shared_context import common_prefix

ROWS = st.lists(st.lists(st.integers(0, 3), max_size=6), min_size=1, max_size=12)


@given(ROWS, st.data())
def test_rows_come_back_whole_in_any_order_and_between_writes(tmp_path_factory, rows, data):
    spool = DiskRows(tmp_path_factory.getbasetemp(), np.int32)
    for number, row in enumerate(rows):
        spool.append(row)
        asked = data.draw(st.integers(0, number))
        assert spool[asked].tolist() == rows[asked]
    assert [row.tolist() for row in spool] == rows
    assert spool.lengths.tolist() == [len(row) for row in rows]
    assert max(0, min(spool.shared, min(map(len, rows)) - 1)) == common_prefix(rows)


def test_its_file_has_no_name_and_what_rows_share_is_kept_once(tmp_path):
    spool = DiskRows(tmp_path, np.uint8)
    for number in range(1000):
        spool.append(np.frombuffer(b"what all begin with " * 100 + str(number).encode(), np.uint8))
    assert spool[999].tobytes().endswith(b"with 999")
    assert os.listdir(tmp_path) == []
    assert os.fstat(spool._file.fileno()).st_size < 4000


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UnavailableError, match="cannot be written"):
        DiskRows(tmp_path / "file", np.int32)


def test_views_written_in_parts_are_the_same_file(tmp_path):
    def table(numbers):
        texts = [f"text {number}" for number in numbers]
        return view_table.ViewTable(texts, texts, [None, *texts[1:]], texts, texts)

    view_table.write(tmp_path / "whole", {"train": table(range(2500)), "eval": table(range(10))})
    parts = [("train", table(range(start, min(2500, start + 1024)))) for start in range(0, 2500, 1024)]
    for (_, part), start in zip(parts, range(0, 2500, 1024), strict=True):
        part.reference[0] = None if start == 0 else f"text {start}"
    view_table.write(tmp_path / "parts", iter([*parts, ("eval", table(range(10)))]))
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()


@given(st.lists(st.lists(st.sampled_from([0.25, 0.5, 0.75, 1.0]), max_size=9), min_size=1), st.floats(0, 100))
def test_a_tally_has_the_percentiles_of_all_values(parts, q):
    tally = Tally()
    for part in parts:
        tally.add(np.array(part, np.float32))
    every = np.concatenate([np.array(part, np.float32) for part in parts])
    assert tally.count == len(every)
    if len(every):
        assert tally.percentile(q) == pytest.approx(float(np.percentile(every, q)))


def test_what_a_kill_leaves_where_files_need_names_is_swept(tmp_path, monkeypatch):
    """`tempfile` gives a file a name first where the file system has no files without one."""
    names = []

    def named(*_, prefix, suffix, dir, **options):
        names.append(f"{prefix}x{suffix}")
        return tempfile.NamedTemporaryFile(prefix=prefix, suffix=suffix, dir=dir, delete=False)

    monkeypatch.setattr(tempfile, "TemporaryFile", named)
    workspace = Workspace(tmp_path)
    with workspace.lock():
        DiskRows(workspace.folder("collect"), np.int32)
    assert len(list(workspace.folder("collect").iterdir())) == 1
    with workspace.lock():
        assert list(workspace.folder("collect").iterdir()) == []
