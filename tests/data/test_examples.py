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
from distillctl.data import examples, views
from distillctl.data.rows import left_out
from distillctl.errors import DataError, RecipeError, UnavailableError
from tests.recipe.test_recipe import BASE

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
        ("rows.jsonl", '{"input": 5}\n', 'rows.jsonl:1: "input" is empty or not text'),
        ("rows.jsonl", '{"input": "a"}\n{oops\n', "rows.jsonl:2: not JSON"),
        ("rows.jsonl", "[1]\n", "rows.jsonl:1: each line must be one JSON object"),
        ("rows.jsonl", "", "has no rows"),
        ("rows.jsonl", b'{"input": "\xff"}\n', "is not utf-8 text"),
        ("rows.jsonl", '{"input": "a", "reference": "yess"}\n', "is 'yess', which is not a label, did you mean yes?"),
        ("rows.csv", "input,reference\na,yes\nb\n", "rows.csv:3: it has 1 cells, and the header 2"),
        ("rows.csv", "input,input\na,b\n", "rows.csv:1: a column name is given twice"),
        ("rows.csv", 'input\n"a\n', "not a table"),
        ("rows.parquet", "PAR1 no", "not a Parquet file"),
        ("rows.xyz", "a", "set data.format"),
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
    with pytest.raises(DataError, match="there is no file"):
        examples.load(make(None))
    with pytest.raises(UnavailableError, match="package nowhere_to_be_found is not installed") as error:
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
    counts = {name: count for name, count in found.counts.items() if count}
    assert counts == {"overlap": 1, "train": 19, "eval": 2}
    assert {name for name, count in found.counts.items() if not count} == {
        "duplicates", "shots", "shots_in_splits", "blank", "unreferenced", "excluded", "contradictory"
    }  # fmt: skip


def test_few_shot_rows_leave_the_train_split_one_label_after_the_other(make):
    contexts = {"full": {"template": "{{ input }}", "examples": {"train": 6}}}
    found = examples.load(make(ROWS, contexts=contexts))
    shots = found.shots["full"]
    assert [shot.answer for shot in shots] == ["yes", "no"] * 3
    assert not {shot.input for shot in shots} & inputs([*found.train, *found.eval])


def test_more_rows_asked_for_than_there_are(make):
    with pytest.raises(
        DataError, match=r"data.train_rows: there are only 15 rows for train, and the recipe asks for 40"
    ):
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


@given(st.lists(st.booleans(), min_size=8, max_size=40), st.integers(0, 3))
def test_rows_with_a_reference_are_held_out_first_and_the_order_is_kept(tmp_path_factory, referenced, seed):
    folder = tmp_path_factory.mktemp("rows")
    rows = [{"input": f"row {i}", "reference": "yes" if has else None} for i, has in enumerate(referenced)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"source": "rows.jsonl", "eval_rows": 5, "seed": seed, "reference": "reference"}
    (folder / "r.yaml").write_text(yaml.safe_dump({**BASE, "data": data}))
    found = examples.load(recipes.load(folder / "r.yaml"))
    held, train = list(found.eval), list(found.train)
    assert sum(row.reference is not None for row in held) == min(5, sum(referenced))
    assert inputs(held) | inputs(train) == {row["input"] for row in rows}
    if all(referenced) or not any(referenced):
        (folder / "rows.jsonl").write_text("".join(json.dumps({"input": row["input"]}) + "\n" for row in rows))
        (folder / "r.yaml").write_text(yaml.safe_dump({**BASE, "data": data | {"reference": None}}))
        without = examples.load(recipes.load(folder / "r.yaml"))
        assert [row.input for row in without.eval] == [row.input for row in held]


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


# ── which rows ───────────────────────────────────────────────────────────────────────────────────

SORTED = [{"input": f"row number {i}", "reference": "yes" if i < 100 else "no"} for i in range(200)]


def files(folder, train, held, **sections):
    """A recipe over two files."""
    for name, rows in (("train.jsonl", train), ("eval.jsonl", held)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"train": "train.jsonl", "eval": "eval.jsonl", **sections.pop("data", {})}
    (folder / "r.yaml").write_text(yaml.safe_dump({**BASE, "data": data, **sections}))
    return recipes.load(folder / "r.yaml")


def test_sorted_files_are_drawn_from_by_the_seed(tmp_path):
    held = [{**row, "input": f"held {row['input']}"} for row in SORTED]

    def drawn(train=SORTED, **data):
        return examples.load(files(tmp_path, train, held, data={"train_rows": 40, "eval_rows": 20, **data}))

    found = drawn()
    for part in (found.train, found.eval):
        assert {row.reference for row in part} == {"yes", "no"}
    assert inputs(drawn().train) == inputs(found.train) != inputs(drawn(seed=1).train)
    more = [*SORTED, {"input": "one more", "reference": "yes"}]
    assert len(inputs(drawn(train=more).train) & inputs(found.train)) >= 39


def test_splits_of_a_hub_data_set_are_drawn_from_by_the_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "datasets.load_dataset", lambda *_, split: [{**row, "input": f"{split} {row['input']}"} for row in SORTED]
    )
    data = {"format": "hub", "source": "a/b", "train": "train", "eval": "test", "train_rows": 40, "eval_rows": 20}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({**BASE, "data": data}))
    found = examples.load(recipes.load(tmp_path / "r.yaml"))
    assert [{row.reference for row in part} for part in (found.train, found.eval)] == [{"yes", "no"}] * 2


@pytest.mark.parametrize("kind", ["rows", "file"])
def test_few_shot_examples_leave_both_splits_and_are_counted(tmp_path, kind):
    shots = [{"input": "row  number 1", "answer": "no"}, {"input": "held row number 150", "answer": "no"}]
    (tmp_path / "shots.jsonl").write_text("".join(json.dumps(row) + "\n" for row in shots))
    spec = {"rows": shots} if kind == "rows" else {"file": "shots.jsonl"}
    held = [{**row, "input": f"held {row['input']}"} for row in SORTED]
    recipe = files(tmp_path, SORTED, held, contexts={"full": {"template": "{{ input }}", "examples": spec}})
    found = examples.load(recipe)
    assert found.counts["shots_in_splits"] == 2
    assert (len(found.train), len(found.eval)) == (199, 199)
    assert not {"row number 1", "held row number 150"} & inputs([*found.train, *found.eval])


def test_twins_of_a_drawn_few_shot_example_leave_with_it(make):
    rows = [*ROWS, *ROWS]
    contexts = {"full": {"template": "{{ input }}", "examples": {"train": 4}}}
    found = examples.load(make(rows, contexts=contexts, duplicates="keep", eval_rows=1))
    shots = {shot.input for shot in found.shots["full"]}
    assert not shots & inputs(found.train)
    assert found.counts["shots_in_splits"] > 0
    kept = ("train", "eval", "shots", "shots_in_splits", "overlap")
    assert sum(found.counts[name] for name in kept) == len(rows)


def test_references_that_contradict_each_other_are_counted_once_an_input(make):
    more = [{"input": "row number  3", "reference": "yes"}, {"input": "row number 3", "reference": "yes"}, ROWS[4]]
    for duplicates in ("drop", "keep"):
        found = examples.load(make([*ROWS, *more], duplicates=duplicates))
        assert found.counts["contradictory"] == 1
    kept = {row.input: row.reference for row in (*found.train, *found.eval) if row.id.count("-") == 0}
    assert kept["row number 3"] == "no"


def test_references_of_train_and_eval_that_contradict_each_other_are_counted(tmp_path):
    found = examples.load(files(tmp_path, ROWS, [{"input": "row number 3", "reference": "yes"}, ROWS[4]]))
    assert (found.counts["contradictory"], found.counts["overlap"]) == (1, 2)


BLANK = [*ROWS, {"input": " ", "reference": "yes"}, {"reference": "no"}, {"input": None}]


def test_blank_rows_are_an_error_or_dropped_and_counted(make):
    with pytest.raises(DataError, match=r'rows.jsonl:21: "input" is empty') as error:
        examples.load(make(BLANK))
    assert error.value.next == "set data.blank: drop to leave such rows out"
    found = examples.load(make(BLANK, blank="drop"))
    assert (found.counts["blank"], found.counts["excluded"]) == (3, 0)
    assert len(found.train) + len(found.eval) == 20


def test_rows_without_a_reference_are_kept_or_dropped_and_counted(make):
    rows = [*ROWS, {"input": "not judged yet"}, {"input": "nor this", "reference": None}]
    assert len(examples.load(make(rows)).train) == len(ROWS) + 2 - 5
    found = examples.load(make(rows, unreferenced="drop"))
    assert inputs(found.train) | inputs(found.eval) == {row["input"] for row in ROWS}
    assert found.counts["unreferenced"] == 2
    assert "2 without a reference" in left_out(found.counts)
    # A repeated input is dropped only after those without a reference, so that the one with a reference is kept.
    twice = examples.load(make([{"input": "row number 1"}, *ROWS], unreferenced="drop"))
    assert twice.counts["duplicates"] == 0


def test_exclude_sees_blank_rows_first(make):
    found = examples.load(make(BLANK, exclude=r"^\s*$| 1\d$"))
    assert (found.counts["blank"], found.counts["excluded"]) == (0, 13)


def test_a_column_that_no_row_has_is_no_blank_row(make):
    with pytest.raises(DataError, match=r'no row has a text in "txt" \(the columns: input, reference\)'):
        examples.load(make(ROWS, blank="drop", input="txt"))


# ── columns of a row ─────────────────────────────────────────────────────────────────────────────

NESTED = [
    {
        "request": {"messages": [{"role": "user", "content": f"question {i}"}, {"content": "last"}], "n": i},
        "a.b": f"literal {i}",
        "a": {"b": "nested"},
        "gold": {"label": ("yes", "no")[i % 2]},
    }
    for i in range(12)
]


def test_nested_json_by_path(make, tmp_path):
    paths = {
        "input": "request.messages[0].content",
        "reference": "gold.label",
        "documents": "request.messages[-1].content",
    }
    pq.write_table(pa.Table.from_pylist(NESTED), tmp_path / "rows.parquet")
    for recipe in (make(NESTED, **paths), make(None, "rows.parquet", **paths)):
        rows = [*(found := examples.load(recipe)).train, *found.eval]
        assert {row.input for row in rows} == {f"question {i}" for i in range(12)}
        assert {row.reference for row in rows} == {"yes", "no"}
        assert {row.documents for row in rows} == {("last",)}


def test_a_column_whose_name_is_the_path_comes_first(make):
    found = examples.load(make(NESTED, input="a.b"))
    assert inputs([*found.train, *found.eval]) == {f"literal {i}" for i in range(12)}


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("request.messages", "is a list, not text"),
        ("request.messages[7].content", 'no "request.messages[7].content" (it has: request, a.b, a, gold)'),
        ("request.text", 'no "request.text"'),
    ],
)
def test_paths_that_lead_nowhere(make, path, told):
    with pytest.raises(DataError) as error:
        examples.load(make(NESTED, input=path))
    assert told in str(error.value)


SHOP = [
    {"input": f"text {i}", "title": f"title {i}", "stars": i, "tags": [{"b": "c"}], "spare": "x" * 50,
     "reference": "yes"}
    for i in range(12)
]  # fmt: skip


def rendered(recipe):
    found = examples.load(recipe)
    made = views.renderers(recipe, found.shots)
    return {name: renderer.preview(found.eval[0]) for name, renderer in made.items()}, found.eval[0]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_columns_reach_every_view_with_their_types(make, tmp_path, kind):
    contexts = {
        "full": {"template": "{{ title }} {{ stars + 1 }} {{ row.tags[0].b }} {{ input }}"},
        "simplified": {"template": "{{ row.title }}|{{ input }}"},
    }
    pq.write_table(pa.Table.from_pylist(SHOP), tmp_path / "rows.parquet")
    recipe = make(SHOP, contexts=contexts) if kind == "jsonl" else make(None, "rows.parquet", contexts=contexts)
    texts, example = rendered(recipe)
    number = int(example.input.split()[1])
    assert texts["full"] == f"title {number} {number + 1} c text {number}"
    assert texts["simplified"] == f"title {number}|text {number}"
    assert set(example.columns) == {"title", "stars", "tags"}


def test_row_as_a_whole_keeps_all_columns(make):
    texts, example = rendered(make(SHOP, contexts={"full": {"template": "{% for n in row %}{{ n }} {% endfor %}"}}))
    assert texts["full"] == "input title stars tags spare reference "
    assert set(example.columns) == set(SHOP[0])


def test_few_shot_rows_bring_their_columns(make):
    template = "{% for e in examples %}{{ e.title }}={{ e.answer }};{% endfor %}{{ input }}"
    recipe = make(SHOP, contexts={"full": {"template": template, "examples": {"train": 2}}})
    found = examples.load(recipe)
    expected = "".join(f"title {shot.input.split()[1]}={shot.answer};" for shot in found.shots["full"])
    assert rendered(recipe)[0]["full"].startswith(expected)
    (recipe.folder / "shots.jsonl").write_text('{"input": "q", "answer": "a", "title": "T", "spare": 1}\n')
    recipe = make(SHOP, contexts={"full": {"template": template, "examples": {"file": "shots.jsonl"}}})
    assert examples.load(recipe).shots["full"][0].row == {"title": "T"}
    assert rendered(recipe)[0]["full"].startswith("T=a;text")


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_an_unknown_variable_lists_the_columns(make, tmp_path, kind):
    pq.write_table(pa.Table.from_pylist(SHOP), tmp_path / "rows.parquet")
    contexts = {"full": {"template": "{{ titel }} {{ input }}"}}
    recipe = make(SHOP, contexts=contexts) if kind == "jsonl" else make(None, "rows.parquet", contexts=contexts)
    with pytest.raises(RecipeError) as error:
        examples.load(recipe)
    assert str(error.value).startswith(
        "contexts.full: 'titel' is undefined: no row has such a column, did you mean title?"
    )
    assert "(the columns: input, title, stars, tags, spare, reference; every template also has documents," in str(
        error.value
    )
    assert examples.load(make(SHOP, contexts={"full": {"template": '{{ titel | default("") }}'}})).train


def test_rows_that_the_student_can_tell_apart_are_not_repeated(make):
    rows = [{"input": "the same", "title": f"title {i}", "reference": ("yes", "no")[i % 2]} for i in range(12)]
    shown = {"full": {"template": "{{ title }} {{ input }}"}, "simplified": {"template": "{{ title }}: {{ input }}"}}
    found = examples.load(make(rows, contexts=shown))
    assert (found.counts["duplicates"], found.counts["contradictory"], len(found.train)) == (0, 0, 7)
    assert len({row.id for row in (*found.train, *found.eval)}) == 12
    hidden = {"full": {"template": "{{ title }} {{ input }}"}}
    with pytest.raises(DataError, match=r"no rows are left for the train split \(left out: 11 repeated"):
        examples.load(make(rows, contexts=hidden))


@pytest.mark.parametrize(("cell", "label"), [(True, "true"), (1.0, "1"), (1, "1"), (" 1 ", "1"), (float("nan"), None)])
def test_labels_that_are_numbers_or_booleans(make, cell, label, tmp_path):
    rows = [{"input": f"text {i}", "reference": cell} for i in range(10)]
    recipe = make(rows)
    sections = yaml.safe_load(recipe.path.read_text()) | {"task": {"labels": ["1", "true"]}}
    recipe.path.write_text(yaml.safe_dump(sections))
    assert {row.reference for row in examples.load(recipes.load(recipe.path)).train} == {label}


@pytest.mark.parametrize("content", ["[\n", '[{"input": "a"}]\n'])
def test_a_json_file_that_is_one_list_says_how_to_write_it(make, content):
    with pytest.raises(DataError) as error:
        examples.load(make(content, "rows.json"))
    assert "jq -c '.[]'" in error.value.next


def test_a_label_in_other_letters_is_recognised_in_the_error(make):
    with pytest.raises(DataError, match=r"is 'YES', which is not a label, did you mean yes\?") as error:
        examples.load(make([{"input": "a", "reference": "YES"}]))
    assert error.value.next == 'correct the row, or set data.label_map, such as {"YES": yes}'


def test_a_few_shot_file_is_not_mended_by_knobs_of_the_data(make, tmp_path):
    (tmp_path / "shots.csv").write_text("input;answer\nq;a\n")
    contexts = {"full": {"template": "{{ input }}", "examples": {"file": "shots.csv"}}}
    with pytest.raises(DataError, match=r"shots.csv:1: the header is one cell") as error:
        examples.load(make(ROWS, contexts=contexts))
    assert error.value.next.startswith("few-shot files are")
    (tmp_path / "shots.csv").write_bytes("input,answer\nq,a\n".encode("utf-8-sig"))
    assert examples.load(make(ROWS, contexts=contexts)).shots["full"][0].input == "q"
