"""Templates and messages: what they render, that they cannot reach out, and how they fail."""

import pytest
import yaml

from distillctl import recipe as recipes
from distillctl.data import views
from distillctl.data.examples import Example
from distillctl.errors import DataError, RecipeError
from distillctl.recipe import Shot
from tests.test_recipe import BASE

ROW = Example("id1", "What is {{ 7 * 7 }}?", documents=("first", "second"))
SHOTS = [Shot(input="q1", answer="a1"), Shot(input="q2", answer="a2")]


@pytest.fixture
def renderer(tmp_path):
    def renderer(**context):
        (tmp_path / "r.yaml").write_text(yaml.safe_dump({**BASE, "contexts": {"full": context}}))
        return views.renderers(recipes.load(tmp_path / "r.yaml"), {"full": SHOTS})["full"]

    return renderer


class Chat:
    chat_template = (
        "{% for m in messages %}{{ m.role }}:{{ m.content }}|{% endfor %}{{ 'assistant:' if add_generation_prompt }}"
    )
    special_tokens_map: dict[str, str] = {}

    def get_chat_template(self):
        return self.chat_template


def test_template_sees_examples_documents_and_labels(renderer):
    template = (
        "{% for e in examples %}{{ e.input }}={{ e.answer }};{% endfor %}{{ documents[1] }} {{ labels }} {{ input }}"
    )
    assert renderer(template=template).render(ROW) == "q1=a1;q2=a2;second ['yes', 'no'] What is {{ 7 * 7 }}?"


def test_messages_repeat_for_examples_and_documents(renderer):
    messages = [
        {"role": "system", "content": "rules"},
        {"role": "user", "content": "{{ example.input }}", "each": "example"},
        {"role": "assistant", "content": "{{ example.answer }}", "each": "example"},
        {"role": "user", "content": "{{ document }}", "each": "document"},
        {"role": "user", "content": "{{ input }}"},
    ]
    found = renderer(messages=messages).render(ROW, Chat())
    shots = "user:q1|assistant:a1|user:q2|assistant:a2"
    assert found == f"system:rules|{shots}|user:first|user:second|user:What is {{{{ 7 * 7 }}}}?|assistant:"


def test_messages_need_a_chat_template(renderer):
    with pytest.raises(RecipeError, match=r"contexts.full: messages need a model with a chat template"):
        renderer(messages=[{"role": "user", "content": "{{ input }}"}]).render(ROW)


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{{ input", "line 1 of the template"),
        ("\n{% for x in %}", "line 2 of the template"),
        ("{{ inputt }}", "'inputt' is undefined"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ input.__class__.__mro__ }}", "unsafe"),
        ("{{ examples.append(1) }}", "unsafe"),
        ("{% include 'x' %}", "no loader"),
    ],
)
def test_bad_templates_are_one_error_with_the_recipes_key(renderer, template, told):
    with pytest.raises(RecipeError) as error:
        renderer(template=template).render(ROW)
    assert "contexts.full" in str(error.value)
    assert told in str(error.value)


def test_template_file_is_relative_to_the_recipe(renderer, tmp_path):
    (tmp_path / "prompt.txt").write_text("Q: {{ input }}")
    assert renderer(template_file="prompt.txt").render(Example("i", "x")) == "Q: x"
    with pytest.raises(DataError, match=r"template_file: cannot be read"):
        renderer(template_file="none.txt")


@pytest.mark.parametrize(
    ("texts", "length"), [(["abc", "abd"], 2), (["ab", "abc"], 2), (["x"], 1), (["a", "b", ""], 0)]
)
def test_shared_length(texts, length):
    assert views.shared_length(texts) == length
    assert views.shared_length([list(text) for text in texts]) == length
