"""Tables as spreadsheets write them: marks, unnamed columns, delimiters, and quotes that are only text."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillctl import cautions
from distillctl.data import formats
from distillctl.errors import DataError
from distillctl.recipe import Data
from distillctl.untrusted import limits

STRAY = (
    'text\tlabel\n"Twice charged\tbilling\nThe app closes\ttechnical\nI lost my key"\tother\nWhere are you\tother\n'
    "Refund my order\tbilling\n"
)


def read(path: Path, content: str | bytes, **data: object) -> list[dict[str, str]]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    spec = Data(source=path.name, input="text", **data)
    return [row for _, row in formats.rows(path, formats.format_of(path, "auto", "data"), spec)]


def test_quotes_of_a_tsv_are_text(tmp_path: Path) -> None:
    rows = read(tmp_path / "r.tsv", STRAY)
    assert [row["text"] for row in rows] == [
        '"Twice charged', "The app closes", 'I lost my key"', "Where are you", "Refund my order"
    ]  # fmt: skip
    assert [row["label"] for row in rows] == ["billing", "technical", "other", "other", "billing"]


@pytest.mark.parametrize("quoting", ["on", True])
def test_a_stray_quote_that_joins_rows_is_an_error_at_the_line_it_opens(tmp_path: Path, quoting: object) -> None:
    with pytest.raises(DataError, match=r"r.tsv:2: a quote that opens here joins 3 lines into one cell") as error:
        read(tmp_path / "r.tsv", STRAY, quoting=quoting)
    assert "data.quoting: off" in str(error.value.next)


@pytest.mark.parametrize("pairs", [1, 2])
def test_stray_quotes_of_a_csv_are_an_error_however_many(tmp_path: Path, pairs: int) -> None:
    content = "text,label\n" + 'fine,x\n"one,x\ntwo,x\nthree",x\n' * pairs + "last,x\n"
    with pytest.raises(DataError, match=r"r.csv:3: .* joins 3 lines .* each of them is a whole row"):
        read(tmp_path / "r.csv", content)
    assert len(read(tmp_path / "r.csv", content, quoting="off")) == 1 + 4 * pairs


def test_stray_quotes_that_join_all_rows_there_are(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"r.csv:2: .* joins 3 lines"):
        read(tmp_path / "r.csv", 'text,label\n"one,x\ntwo,x\nthree",x\n')


def test_a_single_cell_of_several_lines_is_doubted_until_it_is_vouched_for(tmp_path: Path) -> None:
    content = 'text,label\nfirst,x\n"two\nlines",x\nlast,x\n'
    with pytest.raises(DataError, match=r"r.csv:3: .* no other row of the file has such a cell") as error:
        read(tmp_path / "r.csv", content)
    assert "data.quoting: on" in str(error.value.next)
    assert read(tmp_path / "r.csv", content, quoting="on")[1] == {"text": "two\nlines", "label": "x"}


def test_cells_of_several_lines_in_several_rows_are_read(tmp_path: Path) -> None:
    content = 'text,label\n"two\nlines, really",x\nfirst,x\n"three\n\nlines",x\n'
    assert [row["text"] for row in read(tmp_path / "r.csv", content)] == [
        "two\nlines, really",
        "first",
        "three\n\nlines",
    ]


@pytest.mark.parametrize("rows", [1, 2])
def test_two_lines_that_would_be_rows_are_read_where_the_user_vouches_for_them(tmp_path: Path, rows: int) -> None:
    content = "text,label\n" + '"a, b\nc",x\nplain,x\n' * rows + "last,x\n"
    with pytest.raises(DataError, match=r"r.csv:2: .* joins 2 lines") as error:
        read(tmp_path / "r.csv", content)
    assert "if the cell is correct, set data.quoting: on" in str(error.value.next)
    assert read(tmp_path / "r.csv", content, quoting="on")[0]["text"] == "a, b\nc"


def test_a_table_whose_cells_all_have_lines_with_commas_is_read(tmp_path: Path) -> None:
    assert len(read(tmp_path / "r.csv", "text,label\n" + '"a, b\nc",x\n' * 20)) == 20


def test_stray_quotes_among_cells_of_several_lines(tmp_path: Path) -> None:
    content = 'text,label\n"two\nlines",x\n"one,x\ntwo,x\nthree",x\n' + "plain,x\n" * 4
    with pytest.raises(DataError, match=r"r.csv:4: .* joins 3 lines .* each of them is a whole row"):
        read(tmp_path / "r.csv", content, quoting="on")


def test_a_quoted_tab_that_no_other_row_has(tmp_path: Path) -> None:
    content = 'text\tlabel\nfirst\tx\n"two\tcells"\tx\n'
    with pytest.raises(DataError, match=r"r.tsv:3: a quote that opens here takes a tab into a cell"):
        read(tmp_path / "r.tsv", content, quoting="on")


@pytest.mark.parametrize(
    ("row", "quoting", "remedy"),
    [('"a, b",x', "off", "quoting: on"), ("a, b,x", "off", "delimiter"), ("a, b,x", "auto", "delimiter")],
)
def test_a_row_with_too_many_cells_says_what_to_do(tmp_path: Path, row: str, quoting: str, remedy: str) -> None:
    with pytest.raises(DataError, match=r"r.csv:3: it has 3 cells, and the header 2") as error:
        read(tmp_path / "r.csv", f"text,label\nfirst,x\n{row}\n", quoting=quoting)
    assert f"data.{remedy}" in str(error.value.next)


def test_a_quote_that_is_never_closed_names_the_line_it_opens_on(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"r.csv:3: not a table: .*a quote that opens on this line") as error:
        read(tmp_path / "r.csv", 'text,label\nfirst,x\n"second,x\nthird,x\nfourth,x\n')
    assert "data.quoting: off" in str(error.value.next)


def test_a_rare_cell_of_many_lines_is_doubted_and_kept(tmp_path: Path) -> None:
    def table(long: int, lines: int) -> str:
        cell = '"' + "\n".join(["ham\tsee you"] * lines) + '"'
        return "text,label\n" + f"{cell},x\n" * long + "plain,x\n" * (200 - long)

    with cautions.collected() as found:
        assert len(read(tmp_path / "r.csv", table(2, 12))) == 200
    assert [one["code"] for one in found] == ["joined-lines"]
    assert "r.csv:2: quotes hold 12 lines together in one row, and 2 of 200 rows" in found[0]["text"]
    with cautions.collected() as found:
        read(tmp_path / "r.csv", table(2, 12), quoting="on")
        read(tmp_path / "r.csv", table(2, 9))
        read(tmp_path / "r.csv", table(40, 12))
    assert not found


def test_quotes_that_were_kept_are_pointed_out(tmp_path: Path) -> None:
    with cautions.collected() as found:
        rows = read(tmp_path / "r.tsv", 'text\tlabel\n"He said ""no"""\tx\nplain\tx\n')
    assert rows[0]["text"] == '"He said ""no"""'
    assert [one["code"] for one in found] == ["quotes-kept"]
    with cautions.collected() as found:
        read(tmp_path / "r.tsv", STRAY)
        assert read(tmp_path / "r.tsv", 'text\tlabel\n"He said ""no"""\tx\n', quoting="on")[0]["text"] == 'He said "no"'
    assert not found


def test_rows_of_a_tsv_in_several_lines_say_which_knob_reads_them(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="it has 1 cells, and the header 2") as error:
        read(tmp_path / "r.tsv", 'text\tlabel\n"two\nlines"\tx\n')
    assert error.value.next == "set data.quoting: on if double quotes hold a cell together"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", ["r.csv", "r.tsv", "r.jsonl", "r.csv.gz", "r.jsonl.gz"])
def test_a_byte_order_mark_is_dropped(tmp_path: Path, encoding: str, name: str) -> None:
    rows = '{"text": "a", "label": "x"}\n' if "json" in name else '"text",label\na,x\n'
    content = rows.replace(",", "\t").encode(encoding) if ".tsv" in name else rows.encode(encoding)
    packed = gzip.compress(content) if name.endswith(".gz") else content
    said = "utf-8" if encoding == "utf-8-sig" else encoding
    if ".tsv" in name:
        with cautions.collected():
            assert read(tmp_path / name, packed, encoding=said, quoting="on") == [{"text": "a", "label": "x"}]
        return
    assert read(tmp_path / name, packed, encoding=said) == [{"text": "a", "label": "x"}]


def test_lines_and_catalogs_have_marks_too(tmp_path: Path) -> None:
    path = tmp_path / "r.txt"
    path.write_bytes("x: a\nx: b\n".encode("utf-8-sig"))
    data = Data(source="r.txt", input="text", format="lines", pattern="(?P<label>x): (?P<text>.*)")
    assert [row["text"] for _, row in formats.rows(path, "lines", data)] == ["a", "b"]
    catalog = 'msgid ""\nmsgstr "Content-Type: text/plain; charset=UTF-8\\n"\n\nmsgid "é"\nmsgstr "e"\n'
    for name, pack in (("r.po", bytes), ("r.po.gz", gzip.compress)):
        path = tmp_path / name
        path.write_bytes(pack(catalog.encode("utf-8-sig")))
        assert [row["input"] for _, row in formats.rows(path, formats.format_of(path, "auto", ""), data)] == ["é"]


def test_an_encoding_that_a_mark_tells_is_advised(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not utf-8 text") as error:
        read(tmp_path / "r.csv", "text,label\na,x\n".encode("utf-16"))
    assert error.value.next == "set data.encoding: utf-16"


def test_empty_columns_without_a_name_are_ignored(tmp_path: Path) -> None:
    with cautions.collected() as found:
        rows = read(tmp_path / "r.csv", "text,label,, \na,x,,\nb,x\x20,,\nc,x,,,,\n".replace("\x20", ""))
    assert rows == [{"text": text, "label": "x"} for text in "abc"]
    assert not found


def test_columns_without_a_name_that_hold_something_are_pointed_out(tmp_path: Path) -> None:
    with cautions.collected() as found:
        assert read(tmp_path / "r.csv", "text,,label\na,,x\nb,lost,x\n")[1] == {"text": "b", "label": "x"}
    assert [one["code"] for one in found] == ["unnamed-column"]
    assert "r.csv:3: 'lost'" in found[0]["text"]


def test_the_rows_numbers_of_a_data_frame_are_ignored(tmp_path: Path) -> None:
    with cautions.collected() as found:
        assert read(tmp_path / "r.csv", ",text,label\n0,a,x\n1,b,x\n")[0] == {"text": "a", "label": "x"}
    assert not found


def test_a_column_named_twice_stays_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a column name is given twice: 'text'"):
        read(tmp_path / "r.csv", "text,label,text\na,x,b\n")


@pytest.mark.parametrize(
    ("content", "told", "advice"),
    [
        ("text;label\na;x\n", "'text;label': semicolons seem", "set data.delimiter: ';'"),
        ("text\tlabel\na\tx\n", ".* tabs seem", "set data.format: tsv"),
        ("id|text|label\n1|a|x\n", ".* bars seem", "set data.delimiter: '|'"),
    ],
)
def test_a_header_that_is_one_cell_says_what_seems_to_stand_between(
    tmp_path: Path, content: str, told: str, advice: str
) -> None:
    with pytest.raises(DataError, match=rf"r.csv:1: the header is one cell, {told}") as error:
        read(tmp_path / "r.csv", content)
    assert error.value.next == advice


def test_another_delimiter(tmp_path: Path) -> None:
    expected = [{"text": "a, b", "label": "x"}]
    assert read(tmp_path / "r.csv", "text;label\r\na, b;x\r\n", delimiter=";") == expected
    assert read(tmp_path / "r.csv", "sep=;\r\ntext;label\r\na, b;x\r\n") == expected


def test_long_cells_up_to_the_limit_of_json_lines_and_no_lasting_limit_of_csv(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    long = "x" * (before + 1)
    assert read(tmp_path / "r.csv", f"text,label\n{long},x\n")[0]["text"] == long
    assert csv.field_size_limit() == before
    with pytest.raises(DataError, match=r"r.csv:2: a line of more than"):
        read(tmp_path / "r.csv", f"text,label\n{'x' * (limits.TEXT_BYTES + 1)},x\n")
    line = "x" * (limits.TEXT_BYTES // 3)
    with pytest.raises(DataError, match=r"r.csv:2: a row of more than .* a quote that opens on this line"):
        read(tmp_path / "r.csv", f'text,label\n"{line}\n{line}\n{line}\n{line}\n')
    assert csv.field_size_limit() == before


CELL = st.text("ab ,;\"'\n\t", min_size=1, max_size=8).filter(str.strip)


@given(st.lists(st.tuples(CELL, CELL), min_size=3, max_size=6))
def test_what_csv_writes_is_read_or_refused_and_never_joined(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    written = io.StringIO()
    csv.writer(written).writerows([("text", "label"), *rows])
    path = tmp_path_factory.getbasetemp() / "r.csv"
    expected = [{"text": text, "label": label} for text, label in rows]
    found, refused = None, ""
    try:
        found = read(path, written.getvalue())
    except DataError as error:
        refused = str(error)
    assert found == expected or "a quote that opens here" in refused
