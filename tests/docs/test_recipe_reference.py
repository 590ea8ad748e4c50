"""recipes/README.md says of every knob what the schema says: type, default, what it does, and an example that loads."""

import re
from typing import Annotated, Literal, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel, TypeAdapter

from distillctl.recipe import Recipe
from distillctl.recipe.base import Spec, specs
from distillctl.recipe.generate import EvalSoftLabels
from distillctl.recipe.models import Checkpoint, StartsPretrained
from distillctl.recipe.profiles import DeviceProfile
from distillctl.recipe.task_section import TaskSection
from distillctl.recipe.train import LossTerm
from tests.docs import command_reference, recipe_reference

KNOBS = {
    f"{section.paths[0]}.{name}".lstrip(".") + (f" ({section.kind})" if section.kind else ""): (section, info)
    for section in recipe_reference.sections()
    for name, info in section.knobs.items()
}


def test_the_page_is_what_the_schema_says():
    page = recipe_reference.PAGE.read_text(encoding="utf-8")
    assert command_reference.with_reference(page, recipe_reference.text()) == page, "run: make docs"


def test_every_section_of_the_schema_is_there():
    found = {section.model for section in recipe_reference.sections()}
    bases = {Spec, TaskSection, LossTerm, Checkpoint, StartsPretrained}
    assert found == {Recipe, *specs()} - bases - {EvalSoftLabels, DeviceProfile}


@pytest.mark.parametrize("section", recipe_reference.sections(), ids=lambda section: section.model.__name__)
def test_every_section_says_what_it_is(section):
    assert re.fullmatch(r"[A-Z½].*[.)]", " ".join(section.model.__doc__.split()))


@pytest.mark.parametrize(("section", "info"), KNOBS.values(), ids=KNOBS)
def test_every_knob_is_described_in_whole_sentences(section, info):
    assert info.description
    assert re.match(r"[A-Z`α-ω]", info.description)
    assert info.description.endswith(".")


@pytest.mark.parametrize(("section", "info"), KNOBS.values(), ids=KNOBS)
def test_a_knob_whose_default_shows_nothing_has_an_example(section, info):
    kinds = list(_kinds(info.annotation))
    shown = recipe_reference.default(info) not in ("required", "none", "`{}`", "`[]`")
    if not shown and all(kind in (str, int, float) for kind in kinds):
        assert info.examples


def _kinds(annotation):
    """Yield what a value is made of; of choices and sections what they are."""
    if get_origin(annotation) is Literal or (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        yield annotation
    elif get_args(annotation):
        for part in get_args(annotation):
            if get_args(part) or (isinstance(part, type) and part is not type(None)):
                yield from _kinds(part)
    elif isinstance(annotation, type):
        yield annotation


WITH_EXAMPLES = {name: knob for name, knob in KNOBS.items() if knob[1].examples}


@pytest.mark.parametrize(("section", "info"), WITH_EXAMPLES.values(), ids=WITH_EXAMPLES)
def test_examples_are_values_that_a_recipe_may_have(section, info):
    adapter = TypeAdapter(Annotated[info.annotation, None, *info.metadata])
    for example in info.examples:
        adapter.validate_python(example)
        assert yaml.safe_load(recipe_reference.yaml_of(example)) == example
