"""Rows kept in files: what comes back is what went in, in the order of the views, however the shards were read."""

import numpy as np
import pyarrow as pa
import pytest

from distillctl.data import view_table
from distillctl.data.disk_rows import DiskRows, Subset, lengths
from distillctl.data.view_table import ViewTable
from distillctl.errors import UpstreamError
from distillctl.recipe import TopK
from distillctl.soft_labels.columns import per_kept_token, per_token
from distillctl.soft_labels.ragged import Ragged
from distillctl.soft_labels.response_shards import Responses
from distillctl.soft_labels.spooled import SpooledLabels
from distillctl.soft_labels.top_k import TopKLabels
from distillctl.students.student import Student
from distillctl.tasks.generate import response_rows
from tests.fixtures import tiny_generate


def test_labels_come_back_as_they_went_in(tmp_path):
    fields = [per_kept_token("ids", pa.int32()), per_kept_token("log_probs", pa.float32()), per_token("log_tail")]
    rows = [
        {
            "ids": Ragged(np.arange(sum(counts), dtype=np.int32), np.array(counts)),
            "log_probs": Ragged(-np.arange(sum(counts), dtype=np.float32), np.array(counts)),
            "log_tail": np.full(len(counts), -np.inf, np.float32),
        }
        for counts in ([2, 0, 3], [], [1])
    ]
    kept = SpooledLabels(tmp_path, fields)
    for row in rows:
        kept.append(row)
    found = kept.some([2, 0, 1])
    for name, column in found.items():
        for value, row in zip(column, (rows[2], rows[0], rows[1]), strict=True):
            assert len(value) == len(row[name])
            flat, wanted = (np.concatenate([*each, []]) if name != "log_tail" else each for each in (value, row[name]))
            assert flat.tolist() == wanted.tolist()
    assert found["ids"][0].values.dtype == np.int32
    assert found["log_tail"][0].dtype == np.float32
    assert not list(tmp_path.iterdir())  # the files have no names


def test_picked_rows_know_their_lengths_without_being_read(tmp_path):
    spool = DiskRows(tmp_path, np.int32)
    rows = [[1, 2], [], [1, 2, 3]]
    for row in rows:
        spool.append(row)
    for of in (spool, rows):
        some = Subset(Subset(of, [2, 0, 1]), np.array([1, 0]))
        assert [list(row) for row in some] == [[1, 2], [1, 2, 3]]
        assert some.lengths.tolist() == lengths(list(some)).tolist() == [2, 3]


def test_a_split_is_read_in_parts(tmp_path):
    def table(names):
        return ViewTable(names, *([f"{column} {name}" for name in names] for column in ("in", "ref", "full", "simple")))

    path = tmp_path / "views.parquet"
    train, held_out = table([str(n) for n in range(2500)]), table(["a", "b"])
    view_table.write(path, {"train": train, "eval": held_out})
    parts = list(view_table.parts(path, "train", "id", "simplified"))
    assert len(parts) > 2
    assert [name for names, _ in parts for name in names] == train.id
    assert [text for _, texts in parts for text in texts] == train.simplified
    assert view_table.column(path, "eval", "reference") == held_out.reference


def made(folder, parts, tokenizer, profile):
    views = [(["0", "1"], ["a", "the"]), (["2"], ["sea"])]
    who = Student(tiny_generate.decoder(), tokenizer, 128)
    return response_rows.rows(who, views, parts, profile, folder, shared_tokenizer=True, cut=False)


def test_rows_have_the_order_of_the_views_whatever_the_shards_have(tmp_path):
    tokenizer, profile = tiny_generate.bpe_tokenizer(), TopKLabels(TopK(k=3, tail_draws=0))
    generator = np.random.default_rng(0)
    said = {}
    for name, sample in (("0", 0), ("0", 1), ("1", 0), ("2", 0)):
        count = int(generator.integers(1, 5))
        labels = {
            "ids": Ragged.of(generator.integers(0, 300, (count, 3)).astype(np.int32)),
            "log_probs": Ragged.of(np.log(generator.dirichlet(np.ones(4), count))[:, :3].astype(np.float32)),
            "log_tail": np.full(count, -3, np.float32),
        }
        said[name, sample] = (generator.integers(2, 300, count).astype(np.int32), labels)

    def part(*keys):
        ids, labels = zip(*(said[key] for key in keys), strict=True)
        columns = {name: [row[name] for row in labels] for name in labels[0]}
        return Responses(*map(list, zip(*keys, strict=True)), [""] * len(keys), list(ids), np.zeros(len(keys)), columns)

    keys = list(said)
    plain = made(tmp_path, [part(*keys)], tokenizer, profile)
    other = made(tmp_path, [part(keys[3], keys[1]), part(keys[2], keys[0])], tokenizer, profile)
    assert plain.examples.tolist() == other.examples.tolist() == [0, 0, 1, 2]
    assert list(other.responses) == list(plain.responses) == [ids.tolist() for ids, _ in said.values()]
    assert list(other.views) == list(plain.views)
    for field in ("token_ids", "ids", "log_probs", "log_tail"):
        assert getattr(other.targets([3, 1]), field).equal(getattr(plain.targets([3, 1]), field))
    with pytest.raises(UpstreamError, match="row 1 has no response"):
        made(tmp_path, [part(keys[3], keys[1], keys[0])], tokenizer, profile)
