"""Where an answer begins: prefix, final newline and chat template, as the teacher itself would write them."""

from __future__ import annotations

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillctl.data import answer_place
from distillctl.data.answer_place import AnswerPlace
from distillctl.data.examples import Example
from tests.data.test_views import Chat, renderer  # noqa: F401


def shots(before_answer: str, end: str) -> str:
    rows = "{% for e in [['q1', 'a1'], ['q2', 'a2']] %}Q: {{ e[0] }}" + before_answer + "{{ e[1] }}\n\n{% endfor %}"
    return rows + "Q: {{ input }}" + end


def of(template: str, prefix: str | None = None, *, strip_newline: bool = True) -> AnswerPlace:
    render = jinja2.Template(template, keep_trailing_newline=True).render
    return answer_place.of_template(lambda text: render(input=text), prefix, strip_newline=strip_newline)


@pytest.mark.parametrize(
    ("template", "view", "whole"),
    [
        ("Q: {{ input }}\nA:", "Q: x\nA:", "Q: x\nA: yes"),
        ("Q: {{ input }}\nA:\n", "Q: x\nA:\n", "Q: x\nA: yes"),  # a block scalar's newline
        ("Q: {{ input }}\nA:\r\n", "Q: x\nA:\r\n", "Q: x\nA: yes"),
        ("Q: {{ input }}\nA: ", "Q: x\nA: ", "Q: x\nA: yes"),
        ("{{ input }}", "x", "x yes"),
        ("{{ input }}\n\n", "x\n\n", "x\nyes"),  # one newline is stripped, and the other one is meant
        (shots("\nA: ", "\nA:"), "Q: x\nA:", "Q: x\nA: yes"),
        (shots("\nA:", "\nA:"), "Q: x\nA:", "Q: x\nA:yes"),
        (shots("\nA:\n", "\nA:"), "Q: x\nA:", "Q: x\nA:\nyes"),
        (shots("\nA:\n", "\nA:\n"), "Q: x\nA:\n", "Q: x\nA:\nyes"),  # the newline is the examples' own
        (shots(" A:  ", " A:"), "Q: x A:", "Q: x A:  yes"),
        (shots("\nA: ", "\nA: "), "Q: x\nA: ", "Q: x\nA: yes"),
        (shots("分类:", "分类:"), "Q: x分类:", "Q: x分类:yes"),  # a language without spaces
        ("Q: old\nA:\nno\n\nQ: {{ input }}\nA:", "Q: x\nA:", "Q: x\nA:\nyes"),  # written into the template
    ],
)
def test_an_answer_follows_as_in_the_contexts_own_examples(template: str, view: str, whole: str) -> None:
    place = of(template)
    assert place.before(view) + place.between(view) + "yes" == whole


def test_the_recipes_own_prefix_takes_precedence() -> None:
    assert of("{{ input }}:", "").between("x:") == ""
    assert of(shots("\nA:\n", "\nA:"), " ").between("Q: x\nA:") == " "


def test_the_final_newline_stays_where_the_recipe_says_so() -> None:
    place = of("{{ input }}\n", strip_newline=False)
    assert (place.before("x\n"), place.between("x\n")) == ("x\n", "")


@given(st.text(max_size=20), st.sampled_from([None, "", " ", "\n"]))
def test_at_most_one_line_end_is_stripped(text: str, gap: str | None) -> None:
    before = AnswerPlace(gap=gap).before(text)
    assert text.startswith(before)
    assert text[len(before) :] in ("", "\n", "\r\n")


def test_a_template_that_fails_on_the_look_fails_on_a_row_with_its_name() -> None:
    assert answer_place.of_template(lambda text: str(1 / 0), None, strip_newline=True) == AnswerPlace()


# ── chats ────────────────────────────────────────────────────────────────────────────────────────

MESSAGES = [{"role": "user", "content": "{{ input }}"}]


class Written(Chat):
    def __init__(self, template: str) -> None:
        self.chat_template = template


@pytest.mark.parametrize(
    ("assistant", "prompt", "between"),
    [
        ("<a>{{ m.content }}</a>", "<a>", ""),
        ("[/INST] {{ m.content }}</s>", "[/INST]", " "),  # Llama 2
        ("<a>\n{{ m.content | trim }}\n", "<a>\n", ""),
        ("<a><think></think>{{ m.content }}", "<a>", ""),  # a thought is no white space: the label mass will tell
        ("assistant said {{ m.content }}", "<a>", ""),  # the view is not how the conversation goes on
    ],
)
def test_in_a_chat_an_answer_follows_as_the_template_writes_it(renderer, assistant, prompt, between) -> None:  # noqa: F811
    template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}" + assistant + "{% else %}{{ m.content }}|{% endif %}"
        "{% endfor %}{{ '" + prompt + "' if add_generation_prompt }}"
    )
    chat, made = Written(template), renderer(messages=MESSAGES)
    example = Example("a", "x")
    place = made.answer_place(example, None, chat)
    assert (place.before(view := made.render(example, chat)), place.between(view)) == (f"x|{prompt}", between)
    assert made.answer_place(example, "_", chat).between(view) == "_"


def test_arguments_of_the_chat_template_reach_it(renderer) -> None:  # noqa: F811
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{{ '' if enable_thinking is false else '<think>' }}"
    made = renderer(messages=MESSAGES)
    object.__setattr__(made, "chat_arguments", {"enable_thinking": False})
    assert made.render(Example("a", "x"), Written(template)) == "x"
