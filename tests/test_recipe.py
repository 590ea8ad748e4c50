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
        ({"train": {"epochs": "many"}}, "train.epochs: Input should be a valid integer"),
        ({"train": {"epochs": 0}}, "train.epochs: Input should be greater than or equal to 1"),
        ({"train": {"loss": [{"kind": "jsd", "beta": 1}]}}, "use forward_kl or reverse_kl"),
        ({"task": {"labels": ["one"]}}, "task: needs at least two labels"),
        ({"task": {"labels": {"a": "x", "b": "x"}}}, "two labels have the same words"),
        ({"data": {}}, "data: give `source`"),
        ({"data": {"source": "f", "format": "lines"}}, "needs a `pattern`"),
        ({"data": {"source": "f", "pattern": "(?P<text>.*)"}}, "no group (?P<input>"),
        ({"contexts": {"full": {}}}, "exactly one of template, template_file, messages"),
        ({"contexts": {"full": {"template": "x"}, "arms": {"floor": {"template": "x"}}}}, "the name floor is taken"),
        ({"teacher": {}}, "teacher.model: is missing"),
        ({"task": {"labels": [True, False]}}, "the label True is no text: put it in quotes"),
        ({"data": {"source": "a.csv", "train": "b.csv", "eval": "c.csv"}}, "give `source`, or `train` and `eval`"),
        ({"student": {"kind": "truncated", "model": "m", "layers": [0, 0]}}, "each at most once"),
        ({"name": "../x"}, "name: String should match pattern"),
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
