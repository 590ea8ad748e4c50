"""Strangers' text in cards, summaries, pages and on the terminal is text: nothing in it is carried out."""

import io
import re
from html.parser import HTMLParser

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console

from distillctl import console
from distillctl.data import view_table
from distillctl.regression import output
from distillctl.report import contract, page
from distillctl.report import markdown as summary
from distillctl.run_dir.facts import DataFacts, StudentFacts
from distillctl.snippets.reading import Reading
from distillctl.tasks.classify import card as label_card
from distillctl.terminal.text_table import TextTable
from distillctl.untrusted import markdown
from distillctl.untrusted.printable import printable
from tests.fixtures import report_run, tiny

HOSTILE = [
    "# heading",
    "Heading\n===",
    "> quote",
    "- item",
    "+ item",
    "1. item",
    "2) item",
    "* * *",
    "---",
    "~~~",
    "```sh\nrm",
    "![image](https://evil.example/x.png)",
    "[link](https://evil.example)",
    "[link]: https://evil.example",
    "[^1]",
    "<https://evil.example>",
    "https://evil.example/a_b_c",
    "www.evil.example",
    "HTTPS://evil.example",
    "me@evil.example",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<!-- comment",
    "</td></tr></table>",
    "<details>",
    "&lt;script&gt;",
    "&#60;b&#62;",
    "&amp;",
    "a | b",
    "a \\| b",
    "\\",
    "a\\",
    "`code`",
    "``",
    "a ``b`",
    "**bold** _it_ ~~s~~",
    "$x^2$",
    "@someone",
    "#123",
    "| a | b |\n|---|---|\n| c | d |",
    "\r# heading",
    "\u2028# heading",
    "\x85# heading",
    "\x1b[31mred\x1b[0m",
    "\x1b]8;;https://evil.example\x07link\x1b]8;;\x07",
    "\x1b]0;title\x07",
    "\x9b2J",
    "a\x08\x08b",
    "a\rb",
    "\u202eevil\u202c",
    "\u2066isolated\u2069",
    "\u200bzero",
    "\ufeffmark",
    "[red]markup[/red]",
    "[/]",
    ":warning:",
    "[link=https://evil.example]x[/link]",
    "{{ 7 * 7 }}",
    "{% raw %}",
    "\ud800",
    "   ",
    "tab\there",
    "x" * 5000,
]
"""Of labels, licences, titles and names."""

CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")


class _Text(HTMLParser):
    """A page's text, and its elements' names."""

    def __init__(self, html):
        super().__init__()
        self.text, self.tags = "", []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text += data


def _rendered(text):
    return _Text(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(text))


def _line(text):
    """As it has to be read."""
    return printable(" ".join(text.splitlines()))


def _same(found, wanted):
    """Spaces at the ends and several of them are Markdown's to drop."""
    assert " ".join(found.split()) == " ".join(wanted.split())


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("before", ["", "labels: "])
def test_hostile_text_stays_text(text, before):
    found = _rendered(before + markdown.plain(text))
    assert set(found.tags) <= {"p"}, found.tags
    _same(found.text, before + _line(text))


@given(st.text(max_size=60))
def test_any_text_stays_text(text):
    found = _rendered(markdown.plain(text))
    assert set(found.tags) <= {"p"}
    _same(found.text, _line(text))
    assert not CONTROLS.search(markdown.plain(text))


@given(st.text(max_size=60))
def test_any_text_stays_within_its_code(text):
    found = _rendered(f"x {markdown.code(text)} y")
    assert found.tags == ["p", "code"]
    _same(found.text, f"x {_line(text)} y")


@given(st.text(st.characters(codec="utf-8"), max_size=60))
def test_any_text_stays_within_its_block(text):
    found = _rendered(f"before\n\n{markdown.block(text)}\n\nafter")
    assert found.tags == ["p", "pre", "code", "p"]


@given(st.text(max_size=40), st.text(max_size=40))
def test_any_text_stays_within_its_cell(first, second):
    lines = markdown.table(["a", "b"], [[markdown.plain(first), markdown.plain(second)], ["end", "end"]])
    found = _rendered("\n".join(lines))
    assert found.tags == ["table", "thead", "tr", "th", "th", "tbody", *["tr", "td", "td"] * 2]


@pytest.mark.parametrize("text", ["https://evil.example", "HTTP://evil.example", "www.evil.example", "me@evil.example"])
def test_an_address_is_no_link_where_github_would_make_one(text):
    """GitHub links `://`, `www.` and `@` only where they are not escaped."""
    assert re.search(r"\\[:.@]", markdown.plain(text))


# ── what is made of it ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("text", HOSTILE)
def test_a_card_of_hostile_names_has_its_own_headings_and_no_link(tmp_path, text, space):
    (tmp_path / "base").mkdir()
    name = text.replace("\ud800", "?")
    licence = "".join(c for c in name if c.isprintable() or c == "\n")  # what YAML can carry
    (tmp_path / "base" / "README.md").write_text(f"---\n{yaml.safe_dump({'license': licence})}---\n")
    recipe = tiny.recipe(student={"kind": "pretrained", "model": str(tmp_path / "base")})
    labels = {"labels": {f"x{name}x": "a", "b": "b"}}
    recipe = recipe.model_copy(update={"task": type(recipe.task).model_validate(labels)})
    facts = [space.facts("collect", DataFacts), space.facts("train", StudentFacts)]
    facts[0] = facts[0].model_copy(update={"teacher": facts[0].teacher.model_copy(update={"reference": name})})
    reading = Reading.of(
        recipe, view_table.read(space.folder("collect") / "views.parquet", "eval"), facts[1],
        space.folder("train") / "model",
    )  # fmt: skip
    found = label_card.render(recipe, *facts, reading, [{"graph": "fp32"}])
    body = _rendered(found.split("---\n", 2)[2])
    assert not {"a", "img", "script", "h3", "blockquote", "hr", "details", "ul", "ol"} & {*body.tags}
    assert body.tags.count("h1") == 1
    assert body.tags.count("h2") == 3
    assert not CONTROLS.search(found.replace("\n", ""))


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    return tiny.workspace(tmp_path_factory.mktemp("card") / "run", rows=4)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return report_run.committed(tmp_path_factory.mktemp("report") / "run")


@pytest.mark.parametrize("text", [one for one in HOSTILE if "\ud800" not in one and len(one) < 1000])
def test_a_summary_of_a_hostile_title_has_one_heading_and_no_link(finished, text):
    if not text.strip():
        pytest.skip("a blank title is none")
    found = summary.render(contract.build(report_run.recipe(report={"title": text}), finished))
    body = _rendered(found)
    assert not {"a", "img", "script", "h1", "h3", "blockquote", "hr", "ul", "ol"} & {*body.tags}
    assert body.tags.count("h2") == 1
    assert not CONTROLS.search(found)


def test_a_page_of_hostile_titles_and_labels_shows_them_and_runs_none(finished):
    facts = contract.build(
        report_run.recipe(report={"title": "\u202e<script>alert(1)</script>\x1b[31m"}), finished
    ).as_json()
    html = page.render(report_run.reported(facts), contract.series(finished))
    assert "\\u202e&lt;script&gt;alert(1)&lt;/script&gt;\\x1b[31m" in html
    assert "script" not in _Text(html).tags
    assert not CONTROLS.search(html)


def test_a_gate_summary_quotes_the_other_run_as_text(tmp_path, monkeypatch):
    told = "<script>alert(1)</script> ![x](https://evil.example) | \x1b[31m"
    monkeypatch.setattr(output, "readable", lambda found: iter(["", "", "", told]))
    monkeypatch.setattr(output, "_measured", lambda found, name: told)
    found = {"verdict": "passed", "machine": {"cpu": told}} | {
        name: {"verdict": "passed"} for name in ("latency", "size")
    }
    text = output.markdown(found)
    assert not {"a", "img", "script"} & {*_rendered(text).tags}
    assert not CONTROLS.search(text)


# ── the terminal ─────────────────────────────────────────────────────────────────────────────────


def _shown(renderable):
    file = io.StringIO()
    console._show(Console(file=file, force_terminal=True, width=100_000, **console._PLAIN), renderable)
    return file.getvalue()


@pytest.mark.parametrize("text", HOSTILE)
def test_a_result_gives_the_terminal_no_orders(text):
    shown = _shown(f"the label {text}")
    assert not CONTROLS.search(shown)
    assert shown.strip() == printable(f"the label {text}", keep="\n\t").expandtabs().strip()


@pytest.mark.parametrize("text", HOSTILE)
def test_a_table_gives_the_terminal_no_orders(text):
    table = TextTable(("arm", text))
    table.add_row(text, "1")
    shown = _shown(table)
    assert not CONTROLS.search(re.sub(r"\x1b\[[0-9;]*m", "", shown))  # its own heads are bold
    assert "[31m" not in shown.replace(r"\x1b[31m", "")


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("say", [console.note, console.warn, console.caution])
def test_a_message_gives_the_terminal_no_orders(text, say, monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr(console, "_err", Console(file=file, width=100_000, **console._PLAIN))
    say(f"the label {text}")
    assert not CONTROLS.search(file.getvalue())
    assert printable(text, keep="\n")[:3000].rstrip() in file.getvalue().expandtabs(8).rstrip() or "\t" in text


def test_ordinary_writing_is_left_alone():
    for text in ("naïve café", "مرحبا", "नमस्ते", "می‌خواهم", "👩‍👩‍👧", "a\u00a0b", "日本語\u3000です"):
        assert printable(text) == text
