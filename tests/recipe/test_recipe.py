"""The recipe: closed, frozen, typed overrides, and errors that say where and what was meant."""

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from distillctl import recipe as recipes
from distillctl.errors import RecipeError
from distillctl.recipe import base, flatten

BASE = {
    "name": "r",
    "task": {"labels": ["yes", "no"]},
    "data": {"source": "rows.jsonl"},
    "contexts": {"full": {"template": "{{ input }}"}},
    "teacher": {"model": "teacher"},
    "student": {"kind": "pretrained", "model": "student"},
}


@pytest.fixture
def load(tmp_path):
    def load(*overrides, text=None, **sections):
        path = tmp_path / "r.yaml"
        path.write_text(text if text is not None else yaml.safe_dump({**BASE, **sections}))
        return recipes.load(path, overrides)

    return load


def test_defaults_and_lists_of_labels(load):
    recipe = load()
    assert recipe.task.labels == {"yes": "yes", "no": "no"}
    assert recipe.train.loss[0].kind == "forward_kl"
    assert recipe.contexts.simplified.template == "{{ input }}"
    assert recipe.folder == recipe.path.parent


def test_frozen(load):
    with pytest.raises(Exception, match="frozen"):
        load().train.epochs = 3


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"train": {"loss": [{"kind": "jsd", "temprature": 2}]}}, "loss[0].temprature: unknown key, did you mean temp"),
        ({"trian": {}}, "trian: unknown key, did you mean train?"),
        ({"student": {"kind": "pretrained", "modle": "x"}}, "student.modle: unknown key, did you mean model?"),
        ({"student": {"kind": "pretrained", "layers": [0]}}, "layers: unknown key for this kind; truncated has it"),
        ({"train": {"epochs": "many"}}, "train.epochs: a whole number is wanted"),
        ({"train": {"epochs": 0}}, "train.epochs: must be at least 1"),
        ({"train": {"loss": [{"kind": "jsd", "beta": 1}]}}, "use forward_kl or reverse_kl"),
        ({"task": {"labels": ["one"]}}, "task: needs at least two labels"),
        ({"task": {"labels": {"a": "x", "b": "x"}}}, "two labels have the same words"),
        ({"data": {}}, "data: give `source`"),
        ({"data": {"source": "f", "format": "lines"}}, "needs a `pattern`"),
        ({"data": {"source": "f", "pattern": "(?P<text>.*)"}}, "no group (?P<input>"),
        ({"contexts": {"full": {}}}, "exactly one of template, template_file, messages"),
        ({"contexts": {"full": {"template": "x"}, "arms": {"floor": {"template": "x"}}}}, "the name floor is taken"),
        ({"teacher": {}}, "teacher.model: is missing"),
        ({"task": {"labels": [True, False]}}, "task.labels[0]: YAML reads true as a boolean"),
        ({"data": {"source": "a.csv", "train": "b.csv", "eval": "c.csv"}}, "give `source`, or `train` and `eval`"),
        ({"student": {"kind": "truncated", "model": "m", "layers": [0, 0]}}, "each at most once"),
        ({"name": "../x"}, "name: must match the pattern"),
        ({"task": {"kind": "generate"}, "data": {"source": "f", "label_map": {"a": "b"}}},
         "data.label_map: it names labels, and this task has none; leave it out"),
        ({"report": {"languages": {"input": "en", "answer": "french"}}}, "'french' is no code of a language"),
        ({"report": {"languages": {"input": "en", "answer": "en"}}}, "input and answer are the same language"),
        ({"data": {"source": "f", "label_map": {"Y": "yess"}}}, "data.label_map: 'yess' is no label (labels: yes, no)"),
    ],
)  # fmt: skip
def test_errors_say_where_and_what(load, sections, told):
    with pytest.raises(RecipeError) as error:
        load(**sections)
    assert told in str(error.value)
    assert "r.yaml" in str(error.value)
    assert error.value.exit_code == 3


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name: [", ":1: not valid YAML"),
        ("name: a\nname: b\n", ":2: not valid YAML: 'name' is given twice"),
        ("- a\n", "a recipe is a mapping"),
        ("", "a recipe is a mapping"),
        ("x: !!python/object/apply:os.system ['true']", "not valid YAML"),
        ("[" * 3000, "not valid YAML"),
    ],
)
def test_bad_yaml_names_the_line(load, text, told):
    with pytest.raises(RecipeError) as error:
        load(text=text)
    assert told in str(error.value)


WRITTEN = {
    "a-number-as-key": ("data.label_map={1: spam}", "data.label_map", "the key 1", "a number", "1"),
    "a-number-as-value": ("data.label_map={spam: 1}", "data.label_map.spam", "1", "a number", "1"),
    "an-octal-number": ("data.label_map={007: spam}", "data.label_map", "the key 007", "a number", "007"),
    "a-time-of-day": ("data.label_map={12:30: spam}", "data.label_map", "the key 12:30", "a number", "12:30"),
    "a-decimal": ("data.label_map={1.0: spam}", "data.label_map", "the key 1.0", "a number", "1.0"),
    "a-date-as-key": ("data.label_map={2024-01-01: a}", "data.label_map", "the key 2024-01-01", "a date", "2024-01-01"),
    "a-date-as-value": ("data.label_map={a: 2024-01-01}", "data.label_map.a", "2024-01-01", "a date", "2024-01-01"),
    "yes": ("task.labels={yes: yes, no: no}", "task.labels", "the key yes", "a boolean", "yes"),
    "off-as-words": ("task.labels={a: off, b: on}", "task.labels.a", "off", "a boolean", "off"),
    "no-in-a-list": ("task.labels=[sure, no]", "task.labels[1]", "no", "a boolean", "no"),
    "null-as-label": ("task.labels=[null, b]", "task.labels[0]", "null", "no value", "null"),
    "null-as-key": ("data.label_map={null: spam}", "data.label_map", "the key null", "no value", "null"),
    "tilde-as-value": ("data.label_map={spam: ~}", "data.label_map.spam", "~", "no value", ""),
    "nothing-as-value": ("data.label_map={spam: }", "data.label_map.spam", "an empty place", "no value", ""),
    "column": ("data.reference=1", "data.reference", "1", "a number", "1"),
    "column-of-a-list": ("data.source=[a.csv, 2]", "data.source[1]", "2", "a number", "2"),
    "language": ("data.language=no", "data.language", "no", "a boolean", "no"),
    "field": ("task={kind: generate, metrics: [fields], fields: {a: 1}}", "task.fields.a", "1", "a number", "1"),
    "field-column": ("task={kind: generate, metrics: [fields], fields: {a: {column: 2}}}", "task.fields.a.column", "2",
                     "a number", "2"),
    "field-value": ("task={kind: generate, metrics: [fields], fields: {a: {column: x, values: {b: true}}}}",
                    "task.fields.a.values.b", "true", "a boolean", "true"),
    "field-key": ("task={kind: generate, metrics: [fields], fields: {on: x}}", "task.fields", "the key on", "a boolean",
                  "on"),
    "shot": ("contexts.full={template: x, examples: {rows: [{input: 1, answer: a}]}}",
             "contexts.full.examples.rows[0].input", "1", "a number", "1"),
    "shot-column": ("contexts.full={template: x, examples: {rows: [{input: a, answer: b, row: {2: x}}]}}",
                    "contexts.full.examples.rows[0].row", "the key 2", "a number", "2"),
    "arm": ("contexts.arms={no: {template: x}}", "contexts.arms", "the key no", "a boolean", "no"),
    "name": ("name=2024-01-01", "name", "2024-01-01", "a date", "2024-01-01"),
}  # fmt: skip
"""What YAML does not read as text, although text is meant: --set, the path, the word, what YAML reads, how to write."""


@pytest.mark.parametrize("name", WRITTEN)
def test_what_yaml_does_not_read_as_text_is_shown_as_it_has_to_be_written(load, name):
    override, path, word, kind, quoted = WRITTEN[name]
    key, _, value = override.partition("=")
    told = f"{path}: YAML reads {word} as {kind}, and text is wanted; "
    with pytest.raises(RecipeError) as error:
        load(override)
    assert told in str(error.value)
    assert f"in quotes: \"{quoted}\" (and '{key}=…' in single quotes, for the shell)" in str(error.value)
    section, _, inner = key.partition(".")
    others = yaml.safe_dump({name: given for name, given in BASE.items() if name != section})
    with pytest.raises(RecipeError) as error:
        load(text=f"{others}{section}:{f' {{{inner}: {value}}}' if inner else f' {value}'}\n")
    assert told in str(error.value)
    assert f'in quotes: "{quoted}"' in str(error.value)
    assert "for the shell" not in str(error.value)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("data.label_map=[spam]", "data.label_map: a mapping is wanted, such as"),
        ("data.label_map=spam", "data.label_map: a mapping is wanted, such as"),
        ("task.labels={a: [x], b: [y]}", "task.labels.a: is a list, and text is wanted"),
        ("task.labels={a: {x: y}, b: c}", "task.labels.a: is a mapping, and text is wanted"),
        ("train.loss=forward_kl", "train.loss: a list is wanted, such as"),
        ("data=5", "data: a section is wanted"),
        ("contexts.full=hello", "contexts.full: a section is wanted"),
        ("contexts.full.template={{ input }}", "a text that begins with { or [, as a template may, needs quotes"),
        ("data.label_map=!!set {a, b}", "data.label_map: set is no kind of value in a recipe"),
        ("data.label_map={!!binary aGk=: x}", "data.label_map: the key b'hi' is no text"),
        ("data.seed=99999999999999999999999", "data.seed: a number beyond 64 bits"),
    ],
)
def test_what_is_of_another_form_says_which_form_is_wanted(load, override, told):
    with pytest.raises(RecipeError) as error:
        load(override)
    assert told in str(error.value)
    assert "not valid YAML" not in str(error.value)


def test_missing_recipe_says_what_to_type():
    with pytest.raises(RecipeError) as error:
        recipes.load(Path("nowhere.yaml"))
    assert "nowhere.yaml" in str(error.value)
    assert "distillctl init" in error.value.next


def test_overrides_are_typed_by_the_schema(load):
    recipe = load("train.epochs=2", "train.loss[0].temperature=3", "data.eval_rows=null", "task.labels.maybe=perhaps",
                  train={"loss": [{"kind": "jsd"}]}, task={"labels": {"a": "a", "b": "b"}})  # fmt: skip
    assert recipe.train.epochs == 2
    assert recipe.train.loss[0].temperature == 3.0
    assert recipe.task.labels["maybe"] == "perhaps"


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("train.epochs", "expected key.path=value"),
        ("train.epoch=2", "train.epoch: unknown key, did you mean epochs?"),
        ("train.epochs=x", "train.epochs"),
        ("train.loss[3].weight=1", "no item 3"),
        ("name.x=1", "its parent is not a section"),
    ],
)
def test_bad_overrides(load, override, told):
    with pytest.raises(RecipeError) as error:
        load(override, train={"loss": [{"kind": "forward_kl"}]})
    assert told in str(error.value)


def test_dump_reads_back_as_the_same_recipe(load, tmp_path):
    recipe = load(quantize={"candidates": [{"kind": "dynamic_int8"}]})
    path = tmp_path / "again.yaml"
    path.write_text(recipes.dump(recipe))
    assert recipes.load(path).model_dump() == recipe.model_dump()


def test_schema_is_closed_and_describes_its_knobs():
    schema = recipes.schema()
    assert schema["additionalProperties"] is False
    assert all(d.get("additionalProperties") is False for d in schema["$defs"].values() if d["type"] == "object")
    assert "early stopping" in json.dumps(schema["$defs"]["Train"])


def test_every_spec_names_an_implementation_that_exists():
    specs = [cls for cls in base.specs() if getattr(cls, "target", None)]
    assert len(specs) >= 9
    for spec in specs:
        assert callable(recipes.implementation(spec.model_construct()))


json_trees = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1, max_size=3), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(json_trees, json_trees)
def test_flatten_tells_different_trees_apart(a, b):
    if json.dumps(a, sort_keys=True) != json.dumps(b, sort_keys=True):
        assert json.dumps(flatten(a), sort_keys=True) != json.dumps(flatten(b), sort_keys=True)


def test_training_has_the_recipes_seed_unless_it_has_its_own(load):
    assert load(seed=3).train_seed == 3
    assert load(seed=3, train={"seed": 0}).train_seed == 0


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([" billing", "other"], "the label ' billing' has white space around it"),
        ({"yes": "yes ", "no": "no"}, "the label 'yes ' has white space around it"),
        ({"a\n": "yes", "b": "no"}, "has white space around it"),
        (["billing", "other", "billing"], "the label 'billing' is listed twice"),
    ],
)
def test_labels_that_are_not_what_they_seem_are_refused(tmp_path, labels, told):
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({**BASE, "task": {"labels": labels}}))
    with pytest.raises(RecipeError, match=told):
        recipes.load(tmp_path / "r.yaml")


@pytest.mark.parametrize("kind", ["huggingface", "openai"])
def test_a_chat_templates_own_arguments_are_not_to_choose(tmp_path, kind):
    teacher = {"kind": kind, "model": "m", "chat_template_kwargs": {"messages": []}}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({**BASE, "teacher": teacher}))
    with pytest.raises(RecipeError, match="messages is not an argument to choose"):
        recipes.load(tmp_path / "r.yaml")
