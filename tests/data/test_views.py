"""Templates and messages: what they render, that they cannot reach out, and how they fail."""

import pytest
import yaml

from distillctl import recipe as recipes
from distillctl.data import template_sources, views
from distillctl.data.examples import Example
from distillctl.errors import DataError, RecipeError
from distillctl.recipe import Shot
from tests.recipe.test_recipe import BASE

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


# ── columns of the data ──────────────────────────────────────────────────────────────────────────

COLUMNS = {"title": "Broken", "Order number": 7, "items": ["a", "b"], "input": "not this", "range": "far", "note": None}


@pytest.mark.parametrize(
    ("template", "rendered"),
    [
        ("{{ title }}: {{ input }}", "Broken: text"),
        ('{{ row.title }} {{ row["Order number"] + 1 }} {{ row.input }}', "Broken 8 not this"),
        ("{{ row.items[1] }} {{ items | length }}", "b 2"),
        ("{% for i in range(2) %}{{ i }}{% endfor %}{{ row.range }}", "01far"),
        ("[{{ note }}]{% if note %}never{% endif %}", "[]"),
        ('{{ colour | default("none") }}{{ row.colour is defined }}', "noneFalse"),
    ],
)
def test_templates_read_the_columns_of_a_row(renderer, template, rendered):
    assert renderer(template=template).render(Example("i", "text", columns=COLUMNS)) == rendered


def test_a_missing_column_is_an_error_that_says_how_to_do_without(renderer):
    with pytest.raises(RecipeError, match="'colour' is undefined") as error:
        renderer(template="{{ colour }}").render(ROW)
    assert "default" in error.value.next


def test_examples_have_columns_too(renderer, monkeypatch):
    monkeypatch.setitem(globals(), "SHOTS", [Shot(input="q", answer="a", row={"title": "T", "input": "other"})])
    template = "{% for e in examples %}{{ e.title }} {{ e.row.title }} {{ e.input }} {{ e.row.input }}{% endfor %}"
    assert renderer(template=template).render(ROW) == "T T q other"


def used(tmp_path, **context):
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({**BASE, "contexts": {"full": context}}))
    return template_sources.columns(recipes.load(tmp_path / "r.yaml"))["full"]


@pytest.mark.parametrize(
    ("template", "needed", "optional", "everything"),
    [
        ("{{ input }} {{ examples }} {{ documents }} {{ labels }} {{ range(3) }}", set(), set(), False),
        ("{{ title }}{% for part in parts %}{{ part.name }}{% endfor %}", {"title", "parts"}, set(), False),
        ('{{ row.title }}{{ row["Order number"] }}', {"title", "Order number"}, set(), False),
        ("{% for name, value in row.items() %}{{ name }}{% endfor %}", set(), set(), True),
        ("{% for name in row %}{{ row[name] }}{% endfor %}", set(), set(), True),
        ("{% if title is defined %}{{ title }}{% endif %}{{ row.size | default(1) }}", set(), {"title", "size"}, False),
    ],
)
def test_the_columns_that_a_template_uses(tmp_path, template, needed, optional, everything):
    found = used(tmp_path, template=template)
    assert (set(found.needed), found.optional, found.all) == (needed, optional, everything)


@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        ("{% for e in examples %}{{ e.input }} {{ e.title }}{% endfor %}", {"title"}),
        ("{% for e in examples %}{{ e.row.title }}{% endfor %}", None),
    ],
)
def test_the_columns_of_few_shot_examples_are_kept_and_not_shown_of_the_row_itself(tmp_path, template, wanted):
    found = used(tmp_path, template=template)
    assert found.wanted == wanted
    assert not found.shows("title")
    assert found.wants("title")


def test_the_columns_that_messages_use(tmp_path):
    messages = [
        {"role": "user", "content": "{{ example.input }} {{ example.title }}", "each": "example"},
        {"role": "user", "content": "{{ input }} {{ shop }} {{ example }}"},
    ]
    found = used(tmp_path, messages=messages)
    assert found.needed == {"shop": "contexts.full.messages[1]", "example": "contexts.full.messages[1]"}
    assert found.of_examples == {"title"}


def test_a_byte_order_mark_of_a_template_file_is_dropped(renderer, tmp_path):
    (tmp_path / "prompt.txt").write_bytes("Q: {{ input }}".encode("utf-8-sig"))
    assert renderer(template_file="prompt.txt").render(Example("i", "x")) == "Q: x"
