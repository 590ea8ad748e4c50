"""The store: what is kept comes back bit for bit and in order, damage is found, and it is small and plain Parquet."""

import json

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distillctl.data import view_table
from distillctl.errors import UpstreamError
from distillctl.losses.targets import Targets
from distillctl.recipe import Dense, Sampled, Text, TopK, implementation
from distillctl.run_dir.facts import Facts
from distillctl.run_dir.workspace import StageOutput, Workspace
from distillctl.soft_labels import response_shards as store
from distillctl.soft_labels import size
from distillctl.soft_labels.ragged import Ragged
from distillctl.soft_labels.response_shards import Response
from distillctl.soft_labels.shards import Shard
from tests.fixtures.tiny import commit

pytestmark = pytest.mark.slow

SPECS = [
    TopK(k=3),
    TopK(k=50, temperatures=(0.5, 2.0), tail_draws=0),
    Sampled(draws=6),
    Sampled(draws=6, exponent=0.5),
    Dense(),
    Text(),
]


def said(spec, lengths, vocabulary=30, seed=0, scale=3.0):
    """A profile, and a response of each length."""
    profile = implementation(spec)(spec)
    generator = torch.Generator().manual_seed(seed)
    found = []
    for number, length in enumerate(lengths):
        log_probs = (torch.randn(length, vocabulary, generator=generator) * scale).log_softmax(-1)
        ids = log_probs.argmax(-1).tolist()
        found.append(Response(ids, f"text {number}\n„{number}“", number % 3 == 0, profile.keep(log_probs, generator)))
    return profile, found


def shard(ids, index=0, arm="full", split="train"):
    return Shard(arm, split, index, "k" * 16, list(ids))


def written(folder, spec, lengths=(3, 1, 4), **options):
    profile, responses = said(spec, lengths, **options)
    ids = [f"row-{number}" for number in range(len(lengths))]
    part = shard(ids)
    store.write(folder, part, [(name, 0, response) for name, response in zip(ids, responses, strict=True)], profile)
    return profile, responses, part


def tensors(targets):
    """All of its tensors, by name."""
    flat = {}
    for name, value in vars(targets).items():
        inner = vars(value) if isinstance(value, Targets) else value
        flat |= {f"{name}-{key}": each for key, each in inner.items()} if isinstance(inner, dict) else {name: value}
    return {name: value for name, value in flat.items() if value is not None}


# ── what comes back ──────────────────────────────────────────────────────────────────────────────


@given(
    st.sampled_from(SPECS),
    st.lists(st.integers(1, 6), min_size=1, max_size=5),
    st.integers(1, 40),
    st.sampled_from([0.1, 5.0, 60.0]),
    st.integers(0, 2**32 - 1),
)
def test_what_was_kept_is_read_back_bit_for_bit(tmp_path_factory, spec, lengths, vocabulary, scale, seed):
    folder = tmp_path_factory.mktemp("shards")
    profile, responses, part = written(folder, spec, lengths, vocabulary=vocabulary, scale=scale, seed=seed)
    found = store.read_shards(folder, [part], part.ids, profile)
    assert found.id == part.ids
    assert found.text == [response.text for response in responses]
    assert found.cut.tolist() == [response.cut for response in responses]
    assert [ids.tolist() for ids in found.token_ids] == [response.token_ids for response in responses]
    assert found.context_kl is None
    kept = {name: [response.labels[name] for response in responses] for name in found.labels}
    token_ids = [np.array(response.token_ids) for response in responses]
    before, after = profile.targets(kept, token_ids, None), profile.targets(found.labels, found.token_ids, None)
    assert list(tensors(before)) == list(tensors(after))
    for name, tensor in tensors(before).items():
        assert torch.equal(tensor, tensors(after)[name]), name
        assert tensor.dtype == tensors(after)[name].dtype in (torch.int64, torch.float32)
        assert len(tensor) == sum(lengths)


def test_some_rows_of_a_split_are_targets_of_their_own(tmp_path):
    profile, _, part = written(tmp_path, Sampled(draws=5))
    found = store.read_shards(tmp_path, [part], part.ids, profile)
    whole = profile.targets(found.labels, found.token_ids, None)
    some = profile.targets(
        {name: [column[2], column[0]] for name, column in found.labels.items()},
        [found.token_ids[2], found.token_ids[0]], None,
    )  # fmt: skip
    order = torch.tensor([4, 5, 6, 7, 0, 1, 2])
    assert torch.equal(some.token_ids, whole.token_ids[order])
    width = some.ids.shape[1]
    assert torch.equal(some.log_probs, whole.log_probs[order, :width])
    assert torch.equal(some.ids, whole.ids[order, :width])
    assert torch.equal(some.weights, whole.weights[order, :width])


@pytest.mark.parametrize("spec", [TopK(k=2), Sampled(draws=9)])
def test_ids_beyond_17_bits(tmp_path, spec):
    vocabulary = 2**18 + 3
    profile = implementation(spec)(spec)
    log_probs = torch.full((1, vocabulary), -20.0)
    log_probs[0, -2:] = 0
    labels = profile.keep(log_probs.log_softmax(-1), torch.Generator().manual_seed(1))
    store.write(tmp_path, shard("a"), [("a", 0, Response([vocabulary - 1], "x", False, labels))], profile)
    found = store.read_shards(tmp_path, [shard("a")], "a", profile)
    assert found.token_ids[0].tolist() == [vocabulary - 1]
    assert {*found.labels["ids"][0][0].tolist()} == {vocabulary - 2, vocabulary - 1}
    targets = profile.targets(found.labels, found.token_ids, None)
    assert targets.token_ids.tolist() == [vocabulary - 1]
    assert {*targets.ids[0].tolist()} == {vocabulary - 2, vocabulary - 1}


def test_rows_come_in_the_order_of_the_views_and_samples_ascending(tmp_path):
    profile, responses = said(TopK(k=2), range(1, 7))
    space = Workspace(tmp_path)
    folder = space.folder("collect")
    names = ["c", "a", "b"]
    view_table.write(folder / "views.parquet", {"train": view_table.ViewTable(names, *[names] * 4)})
    rows = [("a", 1), ("a", 0), ("c", 0), ("b", 1), ("c", 1), ("b", 0)]
    numbered = [(*row, response) for row, response in zip(rows, responses, strict=True)]
    store.write(folder, shard("a", 0), numbered[:2], profile)
    store.write(folder, shard("cb", 1), numbered[2:], profile)
    commit(space, "collect", StageOutput(["views.parquet", "shards"], Facts()))
    found = store.read(space, "full", "train", profile)
    assert list(zip(found.id, found.sample, strict=True)) == [(name, sample) for name in "cab" for sample in (0, 1)]
    by_row = dict(zip(rows, responses, strict=True))
    for row, text, ids, log_tail in zip(
        zip(found.id, found.sample, strict=True), found.text, found.token_ids, found.labels["log_tail"], strict=True
    ):
        assert text == by_row[row].text
        assert ids.tolist() == by_row[row].token_ids
        assert log_tail.tolist() == by_row[row].labels["log_tail"].tolist()
    assert store.present(folder, shard("a", 0))
    with pytest.raises(UpstreamError, match="no soft labels for floor/train"):
        store.read(space, "floor", "train", profile)
    with pytest.raises(UpstreamError, match="row d has no response"):
        store.read_shards(folder, [shard("a", 0)], ["a", "d"], profile)


def test_context_kl_is_kept_where_it_was_worked_out(tmp_path):
    profile, responses = said(Text(), [2, 3])
    kl = [np.array([0.5, np.pi]), np.array([1e-9, 0, 7])]
    rows = [
        (name, 0, Response(response.token_ids, response.text, False, {}, per_token))
        for name, response, per_token in zip("ab", responses, kl, strict=True)
    ]
    store.write(tmp_path, shard("ab"), rows, profile)
    found = store.read_shards(tmp_path, [shard("ab")], "ba", profile)
    assert [per_token.tolist() for per_token in found.context_kl] == [
        per_token.astype(np.float32).tolist() for per_token in kl[::-1]
    ]
    with pytest.raises(ValueError, match="row b has no context_kl"):
        store.write(tmp_path, shard("ab"), [rows[0], ("b", 0, responses[1])], profile)


def test_a_column_that_does_not_fit_the_response_is_refused(tmp_path):
    profile, (response, longer) = said(TopK(k=2), [2, 3])
    mixed = Response(response.token_ids, "", False, response.labels | {"log_tail": longer.labels["log_tail"]})
    with pytest.raises(ValueError, match="log_tail of row a is not one entry per response token"):
        store.write(tmp_path, shard("a"), [("a", 0, mixed)], profile)
    assert not list(tmp_path.rglob("*.parquet"))


def test_text_alone_can_be_read_from_any_profile(tmp_path):
    _, responses, part = written(tmp_path, TopK(k=3))
    text = implementation(Text())(Text())
    found = store.read_shards(tmp_path, [part], part.ids, text)
    assert found.labels == {}
    assert found.text == [response.text for response in responses]
    assert text.targets({}, found.token_ids, None).token_ids.tolist() == [i for r in responses for i in r.token_ids]


def test_labels_of_another_profile_are_an_upstream_error(tmp_path):
    _, _, part = written(tmp_path, TopK(k=3))
    spec = Sampled()
    with pytest.raises(UpstreamError, match="no weights"):
        store.read_shards(tmp_path, [part], part.ids, implementation(spec)(spec))


# ── damage ───────────────────────────────────────────────────────────────────────────────────────


@given(st.sampled_from(SPECS), st.data())
def test_every_flipped_bit_is_found(tmp_path_factory, spec, data):
    folder = tmp_path_factory.mktemp("shards")
    profile, _, part = written(folder, spec)
    path = folder / part.file
    whole = path.read_bytes()
    assert store.present(folder, part)
    place, bit = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 7))
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
    assert not store.present(folder, part)
    with pytest.raises(UpstreamError, match="damaged") as caught:
        store.read_shards(folder, [part], part.ids, profile)
    assert caught.value.where == str(path)
    assert caught.value.next == "distillctl collect RECIPE"


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b + b"\0"])
def test_a_file_of_another_length_is_found(tmp_path, damage):
    profile, _, part = written(tmp_path, TopK(k=3))
    path = tmp_path / part.file
    path.write_bytes(damage(path.read_bytes()))
    assert not store.present(tmp_path, part)
    with pytest.raises(UpstreamError, match="damaged"):
        store.read_shards(tmp_path, [part], part.ids, profile)


def test_what_is_not_there_or_of_other_rows_is_not_present(tmp_path):
    _, _, part = written(tmp_path, Text())
    assert store.present(tmp_path, part)
    assert not store.present(tmp_path, shard(part.ids[:-1]))
    assert not store.present(tmp_path, shard(part.ids[::-1]))
    assert not store.present(tmp_path, shard(part.ids, index=1))


def test_several_samples_of_a_row_are_one_row_of_the_plan(tmp_path):
    profile, (first, second, third) = said(Text(), [1, 2, 3])
    store.write(tmp_path, shard("ab"), [("a", 0, first), ("a", 1, second), ("b", 0, third)], profile)
    assert store.present(tmp_path, shard("ab"))


def test_the_same_labels_are_the_same_bytes(tmp_path):
    parts = [written(tmp_path / name, Sampled(draws=6))[2] for name in ("one", "two")]
    one, two = ((tmp_path / name / part.file).read_bytes() for name, part in zip(("one", "two"), parts, strict=True))
    assert one == two


# ── plain Parquet, and small ─────────────────────────────────────────────────────────────────────


def test_pandas_reads_a_folder_of_shards(tmp_path):
    profile, responses = said(TopK(k=4), [2, 5])
    for index, (name, response) in enumerate(zip("ab", responses, strict=True)):
        store.write(tmp_path, shard(name, index), [(name, 0, response)], profile)
    table = pd.read_parquet(tmp_path / "shards")
    kept = ["ids", "log_probs", "log_tail", "tail_ids", "tail_log_probs"]
    assert table.columns.tolist() == ["id", "sample", "text", "cut", "token_ids", *kept]
    assert table.id.tolist() == ["a", "b"]
    assert table.text.tolist() == [response.text for response in responses]
    row = table.iloc[1]
    assert row.token_ids.tolist() == responses[1].token_ids
    assert [ids[0] for ids in row.ids] == responses[1].token_ids  # the likeliest first, and they were greedy
    np.testing.assert_array_equal(row.log_probs[3], responses[1].labels["log_probs"][3])
    np.testing.assert_allclose(
        [np.exp(head).sum() + np.exp(tail) for head, tail in zip(row.log_probs, row.log_tail, strict=True)],
        1,
        atol=2e-3,
    )


@pytest.mark.parametrize("spec", SPECS)
def test_only_encodings_that_every_common_reader_knows(tmp_path, spec):
    """DuckDB before 2.0 reads byte-stream-split floats and doubles only."""
    *_, part = written(tmp_path, spec, [3] * 20)
    group = pq.read_metadata(tmp_path / part.file).row_group(0)
    for column in map(group.column, range(group.num_columns)):
        extra = {"BYTE_STREAM_SPLIT"} if column.physical_type == "FLOAT" else {"DELTA_BINARY_PACKED"}
        assert {*column.encodings} <= {"PLAIN", "RLE", "RLE_DICTIONARY"} | extra, column.path_in_schema
        assert column.physical_type in ("BYTE_ARRAY", "INT32", "FLOAT", "BOOLEAN")
        assert column.compression == "ZSTD"


def peaked(vocabulary, count, sharpness, seed=0):
    """Distributions like a language model's: Zipf's law over ids that differ from position to position."""
    generator = torch.Generator().manual_seed(seed)
    ranks = torch.arange(1, 401).double()
    log_probs = torch.full((count, vocabulary), -torch.inf)
    for row in range(count):
        ids = torch.randperm(vocabulary, generator=generator)[:400]
        log_probs[row, ids] = (-sharpness * ranks.log()).log_softmax(-1).float()
    return log_probs


@pytest.mark.parametrize("vocabulary", [49_152, 151_936])
@pytest.mark.parametrize(
    ("spec", "sharpness", "most", "off"),
    [(TopK(k=32), 1.6, 140, 0.15), (Sampled(draws=50), 1.8, 52, 0.15), (Sampled(draws=50), 1.3, 95, 0.5)],
    ids=["top_k", "12 distinct", "24 distinct"],
)
def test_bytes_per_token_even_where_no_id_comes_twice(tmp_path, spec, sharpness, most, off, vocabulary):
    """The worst case: of real text many ids repeat, and the benchmark measures less. off: how far the projection, which
    knows nothing of the text and takes 12 draws of 50 to be distinct, may be off."""
    profile = implementation(spec)(spec)
    generator = torch.Generator().manual_seed(0)
    rows, words = [], ["the", "battery", "dies", "after", "two", "hours"]
    for number in range(128):
        log_probs = peaked(vocabulary, 8, sharpness, seed=number)
        ids = log_probs.argmax(-1).tolist()
        text = json.dumps({"about": words[number % 6], "number": number})
        rows.append((f"{number:016x}", 0, Response(ids, text, False, profile.keep(log_probs, generator))))
    part = shard([name for name, _, _ in rows])
    store.write(tmp_path, part, rows, profile)
    distinct = np.concatenate([[len(ids) for ids in response.labels["ids"]] for _, _, response in rows]).mean()
    assert {52: 12, 95: 24, 140: 31}[most] < distinct
    found = (tmp_path / part.file).stat().st_size / (128 * 8)
    assert found <= most
    assert size.bytes_per_token(spec, vocabulary) == pytest.approx(found, rel=off)


def test_projected_bytes_of_what_keeps_less_or_more():
    assert size.bytes_per_token(Text(), 50_000) < 10
    assert size.bytes_per_token(Dense(), 50_000) == pytest.approx(200_000, rel=0.15)
    assert size.bytes_per_token(TopK(k=8), 50_000) < size.bytes_per_token(TopK(k=8, temperatures=(2.0,)), 50_000)
    assert size.bytes_per_token(TopK(k=64), 16) == size.bytes_per_token(TopK(k=16), 16)
    assert size.bytes_per_token(TopK(temperatures=(1.0, 2.0)), 50) == size.bytes_per_token(
        TopK(temperatures=(2.0,)), 50
    )
    assert size.bytes_per_token(Dense(), None) is None


# ── rows of unlike lengths ───────────────────────────────────────────────────────────────────────


@given(st.lists(st.lists(st.integers(-5, 5), max_size=4), max_size=8), st.integers(0, 8), st.integers(0, 8))
def test_ragged_rows_are_a_list_of_arrays(rows, start, stop):
    found = Ragged.of([np.array(row, np.int64) for row in rows])
    assert [row.tolist() for row in found] == rows
    assert [row.tolist() for row in found[start:stop]] == rows[start:stop]
    assert [row.tolist() for row in Ragged.joined([found, found[start:stop]])] == rows + rows[start:stop]
    if rows:
        assert found[-1].tolist() == rows[-1]
        width = max(map(len, rows))
        assert found.padded(9).tolist() == [row + [9] * (width - len(row)) for row in rows]
