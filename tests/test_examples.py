"""Reading rows: every format, every kind of bad row with its line, and splits that hold their promises."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from distillctl import recipe as recipes
from distillctl.data import examples
from distillctl.errors import DataError, RecipeError, Unavailable
from tests.test_recipe import BASE

ROWS = [{"input": f"row number {i}", "reference": ("yes", "no")[i % 2]} for i in range(20)]


@pytest.fixture
def make(tmp_path):
    """A recipe over a file with this content."""

    def make(content, name="rows.jsonl", contexts=None, **data):
        path = tmp_path / name
        if isinstance(content, list):
            content = "".join(json.dumps(row) + "\n" for row in content)
        if content is not None:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        sections = {**BASE, "data": {"source": name, "eval_rows": 5, **data}}
        if contexts:
            sections["contexts"] = contexts
        (tmp_path / "r.yaml").write_text(yaml.safe_dump(sections))
        return recipes.load(tmp_path / "r.yaml")

    return make


def inputs(rows):
    return {row.input for row in rows}


def test_formats_give_the_same_rows(make, tmp_path):
    expected = examples.load(make(ROWS))
    table = "input,reference\n" + "".join(f"{r['input']},{r['reference']}\n" for r in ROWS)
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    others = [
        make(table, "rows.csv"),
        make(table.replace(",", "\t"), "rows.tsv"),
        make(None, "rows.parquet"),
        make("".join(f"{r['reference']}: {r['input']}\n" for r in ROWS), "rows.txt", format="lines",
             pattern="(?P<reference>\\w+): (?P<input>.+)"),
    ]  # fmt: skip
    for recipe in others:
        found = examples.load(recipe)
        assert (found.train, found.eval) == (expected.train, expected.eval)


def test_tables_do_not_guess_types(make):
    text = "input,reference\n007,yes\nNA,no\nnull,yes\n1e5,no\n"
    found = examples.load(make(text, "rows.csv", eval_rows=1))
    assert inputs([*found.train, *found.eval]) == {"007", "NA", "null", "1e5"}


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("rows.jsonl", '{"input": "a"}\n{"text": "b"}\n', 'rows.jsonl:2: no "input" (it has: text)'),
        ("rows.jsonl", '{"input": "a"}\n\n{"input": " "}\n', 'rows.jsonl:3: "input" is empty'),
        ("rows.jsonl", '{"input": 5}\n', 'rows.jsonl:1: "input" is empty or no text'),
        ("rows.jsonl", '{"input": "a"}\n{oops\n', "rows.jsonl:2: not JSON"),
        ("rows.jsonl", "[1]\n", "rows.jsonl:1: each line must be one JSON object"),
        ("rows.jsonl", "", "has no rows"),
        ("rows.jsonl", b'{"input": "\xff"}\n', "is not utf-8 text"),
        ("rows.jsonl", '{"input": "a", "reference": "yess"}\n', "is 'yess', which is no label, did you mean yes?"),
        ("rows.csv", "input,reference\na,yes\nb\n", "rows.csv:3: 1 cells, the header has 2"),
        ("rows.csv", "input,input\na,b\n", "rows.csv:1: a column name is given twice"),
        ("rows.csv", 'input\n"a\n', "not a table"),
        ("rows.parquet", "PAR1 no", "not a Parquet file"),
        ("rows.xyz", "a", "say data.format"),
    ],
)
def test_bad_rows_say_file_line_and_what(make, name, content, told):
    with pytest.raises(DataError) as error:
        examples.load(make(content, name))
    assert told in str(error.value)
    assert error.value.exit_code == 3


def test_a_line_that_does_not_match_the_pattern(make):
    with pytest.raises(DataError, match=r"rows.txt:2: does not match data.pattern: 'oops'"):
        examples.load(make("yes: a\noops\n", "rows.txt", format="lines", pattern="(?P<reference>\\w+): (?P<input>.+)"))


def test_missing_file_and_package(make):
    with pytest.raises(DataError, match="no such file"):
        examples.load(make(None))
    with pytest.raises(Unavailable, match="package nowhere_to_be_found is not installed") as error:
        examples.load(make(None, "package:nowhere_to_be_found/rows.jsonl"))
    assert error.value.exit_code == 5


def test_package_files_are_found_without_importing_the_package(make, tmp_path, monkeypatch):
    package = tmp_path / "carrier_of_rows"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    monkeypatch.syspath_prepend(tmp_path)
    assert len(examples.load(make(None, "package:carrier_of_rows/rows.jsonl")).train) == 15


@pytest.mark.parametrize("reference", ["package:x/../../etc/passwd", "package:/etc/passwd", "package:a.b/c"])
def test_package_references_cannot_leave_the_package(make, reference):
    with pytest.raises(Exception, match="is not package:NAME or"):
        examples.load(make(None, reference))


def test_a_train_row_that_stands_in_eval_is_dropped_and_counted(make, tmp_path):
    (tmp_path / "held.jsonl").write_text('{"input": "row  number 3"}\n{"input": "new"}\n')
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    found = examples.load(make(None, source=None, train="rows.jsonl", eval="held.jsonl", eval_rows=None))
    assert "row number 3" not in inputs(found.train)
    assert found.counts == {"duplicates": 0, "overlap": 1, "train": 19, "eval": 2, "shots": 0}


def test_few_shot_rows_leave_the_train_split_one_label_after_the_other(make):
    contexts = {"full": {"template": "{{ input }}", "examples": {"train": 6}}}
    found = examples.load(make(ROWS, contexts=contexts))
    shots = found.shots["full"]
    assert [shot.answer for shot in shots] == ["yes", "no"] * 3
    assert not {shot.input for shot in shots} & inputs([*found.train, *found.eval])


def test_more_rows_asked_for_than_there_are(make):
    with pytest.raises(DataError, match=r"data.train_rows: only 15 rows for train, the recipe asks for 40"):
        examples.load(make(ROWS, train_rows=40))


texts = st.lists(st.text("abc ", min_size=1, max_size=4).filter(str.strip), min_size=4, max_size=40)


@given(texts, st.integers(0, 3))
def test_splits_are_disjoint_whole_and_repeatable(tmp_path_factory, rows, seed):
    folder = tmp_path_factory.mktemp("rows")
    (folder / "rows.jsonl").write_text("".join(json.dumps({"input": row}) + "\n" for row in rows))
    distinct = {" ".join(row.split()) for row in rows}
    data = {"source": "rows.jsonl", "eval_rows": 1, "seed": seed}
    (folder / "r.yaml").write_text(yaml.safe_dump({**BASE, "data": data}))
    recipe = recipes.load(folder / "r.yaml")
    if len(distinct) < 2:
        with pytest.raises(DataError, match="no rows are left for the train split"):
            examples.load(recipe)
        return
    found = examples.load(recipe)
    train, held = ({" ".join(e.input.split()) for e in part} for part in (found.train, found.eval))
    assert train | held == distinct
    assert not train & held
    assert len({e.id for e in [*found.train, *found.eval]}) == len(found.train) + len(found.eval)
    again = examples.load(recipe)
    assert (again.train, again.eval) == (found.train, found.eval)


def test_a_new_row_does_not_reshuffle_the_others(make):
    before = examples.load(make(ROWS))
    after = examples.load(make([*ROWS, {"input": "one more", "reference": "yes"}]))
    assert len(inputs(before.eval) & inputs(after.eval)) >= 4


CATALOG = """
msgid ""
msgstr "Content-Type: text/plain; charset=UTF-8"

msgid "Save"
msgstr "Enregistrer"

msgctxt "verb"
msgid "Open"
msgstr ""

#, fuzzy
msgid "Close"
msgstr "Clore"

msgid "%d file"
msgid_plural "%d files"
msgstr[0] "%d fichier"
msgstr[1] "%d fichiers"

#~ msgid "Gone"
#~ msgstr "Parti"

msgid "Delete %s"
msgstr "Supprimer %s"
"""


def test_gettext_catalogs_of_several_folders(tmp_path):
    for part, text in (("one", CATALOG), ("two", CATALOG.replace("Save", "Undo"))):
        folder = tmp_path / part / "app" / "locale" / "fr" / "LC_MESSAGES"
        folder.mkdir(parents=True)
        (folder / "app.po").write_text(text)
    data = {"source": ["one", "two"], "format": "gettext", "language": "fr", "exclude": "%", "eval_rows": 1}
    base = {**BASE, "task": {"kind": "generate"}, "data": data}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(base))
    recipe = recipes.load(tmp_path / "r.yaml")
    found = examples.load(recipe)
    rows = {example.input: example.reference for example in (*found.train, *found.eval)}
    assert rows == {"Save": "Enregistrer", "Undo": "Enregistrer", "Open": None}
    before = examples.fingerprints(recipe)
    (tmp_path / "two/app/locale/fr/LC_MESSAGES/more.po").write_text(CATALOG)
    after = examples.fingerprints(recipe)
    assert before["data.source[0]"] == after["data.source[0]"]
    assert before["data.source[1]"] != after["data.source[1]"]


def test_a_folder_without_the_language(tmp_path):
    data = {"source": ["."], "format": "gettext", "language": "xx"}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({**BASE, "task": {"kind": "generate"}, "data": data}))
    with pytest.raises(DataError, match="no xx/LC_MESSAGES"):
        examples.load(recipes.load(tmp_path / "r.yaml"))


def test_catalogs_of_a_language_and_its_region(tmp_path):
    for name in ("fr", "fr_FR", "de"):
        folder = tmp_path / "app" / "translations" / name / "LC_MESSAGES"
        folder.mkdir(parents=True)
        (folder / "app.po").write_text(CATALOG.replace("Save", name))
    data = {"source": ["app"], "format": "gettext", "language": ["fr", "fr_FR"], "exclude": "%", "eval_rows": 1}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({**BASE, "task": {"kind": "generate"}, "data": data}))
    found = examples.load(recipes.load(tmp_path / "r.yaml"))
    assert {example.input for example in (*found.train, *found.eval)} == {"fr", "fr_FR", "Open"}


def test_shots_of_texts_are_references(tmp_path):
    rows = [{"input": f"in {i}", "reference": f"out {i}"} for i in range(8)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    contexts = {"full": {"template": "{{ input }}", "examples": {"train": 3}}}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({**BASE, "task": {"kind": "generate"}, "contexts": contexts}))
    found = examples.load(recipes.load(tmp_path / "r.yaml"))
    shots = found.shots["full"]
    assert [shot.answer for shot in shots] == [shot.input.replace("in", "out") for shot in shots]
    assert not {shot.input for shot in shots} & {example.input for example in found.train}


def test_gzipped_files_are_read_and_damaged_ones_told(tmp_path):
    text = "\n".join(map(json.dumps, ROWS)).encode()
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({**BASE, "data": {"source": "rows.jsonl.gz"}}))
    recipe = recipes.load(tmp_path / "r.yaml")
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(text))
    assert examples.load(recipe).counts["train"] == 16
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(text)[:-20])
    with pytest.raises(DataError, match="cannot be read"):
        examples.load(recipe)
    (tmp_path / "rows.jsonl.gz").write_bytes(text)
    with pytest.raises(DataError, match="cannot be read"):
        examples.load(recipe)


def test_of_folders_only_catalogs_are_read(tmp_path):
    (tmp_path / "rows").mkdir()
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({**BASE, "data": {"source": "rows"}}))
    recipe = recipes.load(tmp_path / "r.yaml")
    for read in (examples.load, examples.fingerprints):
        with pytest.raises(DataError, match="only `format: gettext`"):
            read(recipe)


def test_several_hub_data_sets_and_a_split_of_one(tmp_path, monkeypatch):
    asked = []
    rows = [{"input": f"row {i}", "reference": "yes"} for i in range(4)]

    def load_dataset(name, subset, split):
        asked.append((name, subset, split))
        return [{**row, "input": f"{name} {split} {row['input']}"} for row in rows]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    hub = {"format": "hub", "source": ["a/one", "a/two"]}
    for data in (hub, hub | {"source": "a/one", "subset": "en-fr", "train": "train", "eval": "test"}):
        (tmp_path / "r.yaml").write_text(yaml.safe_dump({**BASE, "data": data}))
        examples.load(recipes.load(tmp_path / "r.yaml"))
    plain = [("a/one", None, "train"), ("a/two", None, "train")]
    assert asked == [*plain, ("a/one", "en-fr", "train"), ("a/one", "en-fr", "test")]
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({**BASE, "data": {"source": "f.jsonl", "subset": "en-fr"}}))
    with pytest.raises(RecipeError, match="`subset` belongs to a hub data set"):
        recipes.load(tmp_path / "r.yaml")
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({**BASE, "data": hub | {"train": "train", "eval": "test"}}))
    with pytest.raises(RecipeError, match="one hub `source`"):
        recipes.load(tmp_path / "r.yaml")
