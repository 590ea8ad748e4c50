"""What the simplified template makes of an input: text around it, or more than that; found on real rows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillctl.data import view_template
from distillctl.data.rows import Example
from distillctl.data.view_table import ViewTable
from distillctl.data.view_template import WHITESPACE, ViewTemplate
from distillctl.data.views import renderers
from distillctl.recipe import Recipe, Shot
from tests.fixtures import tiny

INPUTS = ["where is the river", "a", "who wrote <b>it</b> & why", "12 a", "A Long One, with ÄÖ and\na line"]


def recipe(simplified: dict, **contexts) -> Recipe:
    return tiny.recipe(contexts={"full": {"template": "{{ input }}"}, "simplified": simplified, **contexts})


def rows(recipe: Recipe, inputs=INPUTS, shots: list[Shot] | None = None) -> ViewTable:
    """As collect leaves them."""
    renderer = renderers(recipe, {"simplified": shots or []})["simplified"]
    views = [renderer.render(Example(str(row), text)) for row, text in enumerate(inputs)]
    return ViewTable([*map(str, range(len(inputs)))], list(inputs), [None] * len(inputs), views, views)


def found(source: str, **more) -> ViewTemplate:
    made = recipe({"template": source, **more})
    return view_template.of(made, rows(made, shots=list(made.contexts.simplified.examples.rows) if more else None))


@pytest.mark.parametrize(
    ("source", "prefix", "suffix"),
    [
        ("{{ input }}", "", ""),
        ("{{ input }}\n", "", "\n"),
        ("Review: {{ input }}", "Review: ", ""),
        ("Review: {{ input }}\n\nLabel:", "Review: ", "\n\nLabel:"),
        ("a {{ input }} a", "a ", " a"),
        ("{{ input | trim }}!", "", "!"),
        ("{{ 'Q: ' ~ input }}?", "Q: ", "?"),
        ("{{ 'Q: ' + input }}", "Q: ", ""),
        ("{# a remark #}{% if true %}\n  x {{ input }}\n{% endif %}", "  x ", "\n"),
        ("One of {{ labels | join(', ') }}: {{ input }}", "One of number, person, place: ", ""),
        ("$x \"y\" 'z' \\n {{ input }} ${1} ```\u2028", "$x \"y\" 'z' \\n ", " ${1} ```\u2028"),
    ],
)
def test_text_around_the_input(source, prefix, suffix):
    template = found(source)
    assert (template.form, template.prefix, template.suffix) == ("text", prefix, suffix)
    made = recipe({"template": source})
    for text in ("never seen", "x" * 5000, "a a a"):
        assert template.view(f" \n{text}\u3000") == rows(made, [text]).simplified[0]


@pytest.mark.parametrize(
    "source",
    [
        "{{ input | upper }}",
        "{{ input }} … {{ input }}",
        "{{ input | replace('never seen', 'x') }}",  # the same on all rows here
        "{% if 'refund' in input %}Urgent. {% endif %}{{ input }}",
        "{% if input | length > 4000 %}Long. {% endif %}{{ input }}",
        "{% filter upper %}{{ input }}{% endfilter %}",
        "{% set x %}{{ input }}{% endset %}{{ x | replace('never seen', 'x') }}",
        "{% for word in input.split() %}{{ word }} {% endfor %}",
        "{{ input[:4000] }}",
    ],
)
def test_more_than_text_around_the_input(source):
    template = found(source)
    assert template.form == "jinja"
    assert template.source == source
    assert template.variables == ()
    with pytest.raises(ValueError, match="more than text"):
        template.view("a")


def test_few_shot_examples_are_constant_text():
    shots = {"rows": [{"input": "hi", "answer": "yes"}, {"input": "no", "answer": "no"}]}
    source = "{% for e in examples %}{{ e.input }}={{ e.answer }}\n{% endfor %}{{ input }}="
    assert found(source, examples=shots).prefix == "hi=yes\nno=no\n"
    more = found(source.replace("{{ input }}", "{{ input | upper }}"), examples=shots)
    assert [(shot["input"], shot["answer"]) for shot in more.constants["examples"]] == [("hi", "yes"), ("no", "no")]


@pytest.mark.parametrize(
    ("source", "variables"),
    [
        ("{{ title }}: {{ input }}", ("title",)),
        ("{{ row.title }}: {{ input }}", ("title",)),
        ("{{ row['Order number'] }}: {{ input }}{{ title }}", ("Order number", "title")),
        ("{{ documents[0] }}: {{ input }}", ("documents",)),
    ],
)
def test_columns_of_the_row_are_named(source, variables):
    made = recipe({"template": source})
    views = [f"t: {text}" for text in INPUTS]
    template = view_template.of(made, ViewTable([], INPUTS, [], views, views))
    assert (template.form, template.variables) == ("jinja", variables)


def chat(content: str) -> Recipe:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}]
    return recipe({"messages": messages})


def test_messages_are_what_the_chat_template_made_of_them():
    views = [f"<|system|>Be brief.<|user|>Q: {text}<|assistant|>\n" for text in INPUTS]
    table = ViewTable([], INPUTS, [], views, views)
    template = view_template.of(chat("Q: {{ input }}"), table)
    assert (template.prefix, template.suffix) == ("<|system|>Be brief.<|user|>Q: ", "<|assistant|>\n")
    assert view_template.of(chat("{{ input | title }}"), table).form == "view"
    views[3] = views[3].replace("brief", "brief ")  # a chat template that writes something else for one row
    assert view_template.of(chat("Q: {{ input }}"), ViewTable([], INPUTS, [], views, views)).form == "view"


def test_inputs_whose_end_was_cut():
    made = tiny.recipe(contexts={"full": {"template": "{{ input }}"}, "simplified": {"template": "Q: {{ input }}\nA:"},
                                 "truncate": "input"})  # fmt: skip
    views = [f"Q: {text[:6].rstrip()}\nA:" for text in INPUTS]
    assert view_template.of(made, ViewTable([], INPUTS, [], views, views)).prefix == "Q: "
    never = made.model_copy(update={"contexts": made.contexts.model_copy(update={"truncate": "never"})})
    assert view_template.of(never, ViewTable([], INPUTS, [], views, views)).form == "jinja"


def test_a_template_file_to_its_last_newline(tmp_path):
    (tmp_path / "simple.txt").write_text("Q: {{ input }}\n")
    made = recipe({"template_file": str(tmp_path / "simple.txt")})
    template = view_template.of(made, rows(made))
    assert (template.prefix, template.suffix, template.source) == ("Q: ", "\n", "Q: {{ input }}\n")


@given(st.text(WHITESPACE + "ab\ufeff\u200b"))
def test_whitespace_is_what_rows_are_stripped_of(text):
    assert text.strip(WHITESPACE) == text.strip()
    assert found("{{ input }}").view(text) == text.strip()


@given(prefix=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="{}#%\r")), suffix=st.text("ab \n"))
def test_any_text_around_the_input(prefix, suffix):
    made = recipe({"template": f"{prefix}{{{{ input }}}}{suffix}"})
    template = view_template.of(made, rows(made))
    assert (template.form, template.prefix, template.suffix) == ("text", prefix, suffix)
