"""A checksum inside a JSON object: no byte of the text can change unseen."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillctl.run_dir import checksums

values = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=8), st.lists, max_leaves=6)
documents = st.dictionaries(
    st.text(min_size=1, max_size=6).filter(lambda key: key != checksums.KEY), values, min_size=1
)
layouts = st.sampled_from([{}, {"indent": 2}, {"separators": (",", ":")}])


@given(documents, layouts, st.booleans())
def test_what_was_put_is_read(document, layout, newline):
    text = checksums.put(json.dumps(document, **layout) + "\n" * newline)
    assert checksums.read(text.encode()) == (document, checksums.of(text))
    assert text.count("\n") == (text.count("\n", 0, -1) + 1)


@given(documents, layouts, st.data())
def test_no_byte_changes_unseen(document, layout, data):
    raw = bytearray(checksums.put(json.dumps(document, **layout)).encode())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    try:
        found, checksum = checksums.read(bytes(raw))
    except ValueError:
        return
    # The key itself has another name: a reader that knows its keys refuses it.
    assert checksum is None
    assert not found.keys() <= document.keys()


@pytest.mark.parametrize("cut", [1, 2, 10, 67, 90])
def test_a_text_that_is_cut_off_is_refused(cut):
    with pytest.raises(ValueError, match=r"JSON|EOF|checksum|expected"):
        checksums.read(checksums.put('{"a": 1, "b": [2, 3]}').encode()[:-cut])


def test_one_of_an_older_version_has_none():
    assert checksums.read(b'{"a": 1}') == ({"a": 1}, None)
    with pytest.raises(ValueError, match="no JSON object"):
        checksums.read(b"[1]")
