"""Shards of label soft labels: what is read back, what older versions wrote, and what is refused."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distillctl.errors import UpstreamError
from distillctl.soft_labels import label_shards, shard_files
from distillctl.soft_labels.label_shards import SoftLabels
from distillctl.soft_labels.shards import Shard

IDS = [f"row-{number}" for number in range(5)]
SHARD = Shard("full", "train", 0, "0" * 64, IDS)


def _labels(seen=None):
    rng = np.random.default_rng(0)
    log_probs = np.log(rng.dirichlet(np.ones(3), len(IDS))).astype(np.float32)
    mass = np.exp(log_probs).sum(1)
    return SoftLabels(IDS, log_probs, mass, seen, ["▁a", "", "é", "b", "c"], rng.normal(size=5).astype(np.float32))


@pytest.mark.parametrize("seen", [None, np.arange(15).reshape(5, 3) % 2 == 0])
def test_what_was_written_is_read_back_to_the_last_bit(tmp_path, seen):
    written = _labels(seen)
    label_shards.write(tmp_path, SHARD, written)
    found = label_shards.read_shards(tmp_path, [Shard("full", "train", 0, "0" * 64, IDS, np.arange(5))])
    for name in ("ids", "log_probs", "mass", "seen", "next_token", "next_log_prob"):
        np.testing.assert_array_equal(getattr(found, name), getattr(written, name))
    assert label_shards.present(tmp_path, SHARD)


def test_a_shard_of_an_older_version_still_opens(tmp_path):
    """Lists of a fixed size, and no checksum of the whole file."""
    written = _labels()
    table = pa.table(
        {
            "id": pa.array(IDS, pa.string()),
            "label_log_probs": pa.array(list(written.log_probs), pa.list_(pa.float32(), 3)),
            "label_mass": pa.array(written.mass, pa.float32()),
        }
    )
    (tmp_path / SHARD.file).parent.mkdir()
    pq.write_table(table, tmp_path / SHARD.file, compression="zstd", write_page_checksum=True)
    assert label_shards.present(tmp_path, SHARD)
    np.testing.assert_array_equal(label_shards._read(tmp_path / SHARD.file).log_probs, written.log_probs)


def test_rows_of_unlike_numbers_of_labels_are_refused(tmp_path):
    lists = pa.array([[0.0, 0.0], [0.0] * 4, [0.0] * 3, [0.0] * 3, [0.0] * 3], pa.list_(pa.float32()))
    mass = pa.array([1.0] * 5, pa.float32())
    shard_files.write(tmp_path / SHARD.file, pa.table({"id": IDS, "label_log_probs": lists, "label_mass": mass}))
    with pytest.raises(UpstreamError, match="different numbers of labels"):
        label_shards._read(tmp_path / SHARD.file)
    assert not label_shards.present(tmp_path, SHARD)


def test_every_changed_byte_is_noticed(tmp_path):
    label_shards.write(tmp_path, SHARD, _labels())
    path = tmp_path / SHARD.file
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert not label_shards.present(tmp_path, SHARD), at
