"""A model's chat template says here what it says in transformers, unless it is wasteful."""

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillctl.untrusted import chat_templates
from distillctl.untrusted.templates import OutputBudgetExceeded
from tests.fixtures import tiny

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are helpful<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GEMMA = (
    "{{ unk_token }}{%- for message in messages -%}\n"
    "    {%- if (message['role'] == 'assistant') -%}{%- set role = 'model' -%}\n"
    "    {%- else -%}{%- set role = message['role'] -%}{%- endif -%}\n"
    "    {{ '<start_of_turn>' + role + '\n' }}{{ message['content'] | trim }}\n"
    "{{ '<end_of_turn>\n' }}{%- endfor -%}{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"
)
TEMPLATES = {
    "chatml": CHATML,
    "gemma": GEMMA,
    "a block that is trained on": (
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{{ cls_token }}{% endfor %}"
    ),
    "tojson": "{{ messages | tojson(indent=2) }}",
    "loop controls": "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m }}{% endfor %}",
    "namespace": "{% set n = namespace(c=0) %}{% for m in messages %}{% set n.c = n.c + 1 %}{% endfor %}{{ n.c }}",
    "date": "{{ strftime_now('%Y') }}{% if tools %}tools{% endif %}{{ documents is none }}",
    "macro": (
        "{% macro say(m) -%} {{ m.role ~ m.content ~ x }} {%- endmacro %}\n"
        "{% for m in messages %}{{ say(m) }}{% endfor %}\n"
    ),
}

roles = st.sampled_from(["system", "user", "assistant"])
messages = st.lists(st.fixed_dictionaries({"role": roles, "content": st.text(max_size=20)}), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tokenizer()


@pytest.mark.parametrize("name", TEMPLATES)
@given(conversation=messages)
def test_the_text_is_that_of_transformers(tokenizer, name, conversation):
    tokenizer.chat_template = TEMPLATES[name]
    expected = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    assert chat_templates.text(tokenizer, conversation) == expected


DOUBLED = "{% set n = namespace(x=VALUE) %}{% for i in range(45) %}{% set n.x = MORE %}{% endfor %}"


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'a' * 9999999999 }}",  # a constant, worked out while it is compiled
        DOUBLED.replace("VALUE", "'aaaaaaaa'").replace("MORE", "n.x ~ n.x") + "{{ n.x }}",
        DOUBLED.replace("VALUE", "(1,)").replace("MORE", "(n.x, n.x)") + "{{ n.x == n.x }}",
        DOUBLED.replace("VALUE", "(1,)").replace("MORE", "((((n.x,),),), n.x)") + "{{ n.x in {} }}",
        DOUBLED.replace("VALUE", "[1]").replace("MORE", "[n.x] * 2") + "{{ raise_exception(n.x) }}",
        DOUBLED.replace("VALUE", "1").replace("MORE", "namespace(a=n.x, b=n.x)") + "{{ n.x }}",
        DOUBLED.replace("VALUE", "1").replace("MORE", "{'a': n.x, 'b': n.x}") + "{{ messages[n.x].foo }}",
        DOUBLED.replace("VALUE", "1").replace("MORE", "dict(a=n.x, b=n.x)") + "{{ n.x | tojson }}",
        "{{ messages | tojson(indent=99999999) }}",
        "{{ range(20000) | list | tojson(indent=9999) }}",
        "{{ range(2000) | list | tojson(separators=('x' * 100000, '')) }}",
        "{{ strftime_now('%999Y' * 20000) }}",
        "{{ strftime_now('%99999999Y') }}",
        "{% for i in range(9999999) %}{% generation %}aaaaaaaa{% endgeneration %}{% endfor %}",
    ],
)
def test_one_that_makes_much_of_little_is_stopped(tokenizer, template):
    tokenizer.chat_template = template
    with pytest.raises((OutputBudgetExceeded, OverflowError)):
        chat_templates.text(tokenizer, [{"role": "user", "content": "hi"}])


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('system is not known') }}",
        "{{ dict.update(messages[0], content='other') }}",
        "{{ namespace(_x=1) }}",
        "{% set n = namespace() %}{% set n.__html__ = 1 %}{{ n | e }}",
        "{{ strftime_now.__globals__['json'] }}",
    ],
)
def test_it_may_refuse_and_reaches_nothing(tokenizer, template):
    tokenizer.chat_template = template
    with pytest.raises(jinja2.TemplateError):
        chat_templates.text(tokenizer, [{"role": "system", "content": "hi"}])


def test_a_message_as_long_as_a_context_is_no_waste(tokenizer):
    tokenizer.chat_template = CHATML
    long = [{"role": "user", "content": "word " * 900_000}]
    assert len(chat_templates.text(tokenizer, long)) > 4_000_000


def test_no_message_is_no_conversation(tokenizer):
    tokenizer.chat_template = CHATML
    with pytest.raises(ValueError, match="no message"):
        chat_templates.text(tokenizer, [])
