"""`distillctl guide`: a list of topics, a page each, plain Markdown for programs."""

import io
import json
import os
import pty
import re
import subprocess
import sys

import pytest
from rich.console import Console

from distillctl import guide
from distillctl.guide.terminal import Page
from tests import ROOT
from tests.fixtures import project


def test_without_a_topic_it_lists_every_one_in_one_line():
    done = project.run("guide", COLUMNS="80")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(guide.NAMES)
    assert all(topic.summary.endswith(".") for topic in guide.topics())


def test_piped_output_is_the_file_as_it_is():
    done = project.run("guide", "safety")
    assert done.stdout == (ROOT / "distillctl" / "guide" / "safety.md").read_text(encoding="utf-8")


def test_json_is_one_object():
    page = json.loads(project.run("guide", "ci", "--json").stdout)
    assert page["topic"] == "ci"
    assert page["markdown"].startswith("# ")
    listed = json.loads(project.run("guide", "--json").stdout)["topics"]
    assert {"topic": "ci", "summary": page["summary"]} in listed


@pytest.mark.parametrize(
    ("word", "nearest"), [("recipe", "recipes"), ("Safty", "safety"), ("quantisation", "quantization")]
)
def test_an_unknown_topic_names_the_nearest(word, nearest):
    done = project.run("guide", word)
    assert done.returncode == 2
    assert f"did you mean {nearest}?" in done.stderr
    assert f"next:  distillctl guide {nearest}" in done.stderr


def test_a_word_like_no_topic_leads_to_the_list():
    done = project.run("guide", "x" * 5000)
    assert done.returncode == 2
    assert "did you mean" not in done.stderr
    assert "next:  distillctl guide\n" in done.stderr


def test_a_terminal_gets_a_rendered_page():
    leader, follower = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "NO_COLOR")}
    process = subprocess.Popen(
        project.command("guide", "concepts"), stdout=follower, env={**environment, "TERM": "xterm", "COLUMNS": "80"}
    )
    os.close(follower)
    shown = b""
    while True:
        try:
            part = os.read(leader, 1 << 16)
        except OSError:  # Linux: the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(leader)
    assert process.wait() == 0
    text = re.sub(r"\x1b\[[0-9;]*m", "", shown.decode())
    assert "\x1b[1m" in shown.decode()
    assert "# Concepts" not in text
    assert "distillctl guide recipes" in " ".join(text.split())


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("name", guide.NAMES)
def test_every_page_is_whole_at_any_width(name, width):
    """No line is wider than the terminal, and no word is cut off."""
    page, printed = guide.topic(name), io.StringIO()
    Console(file=printed, width=width).print(Page(page.for_terminal()))
    lines = printed.getvalue().splitlines()
    assert max(map(len, lines)) <= min(width, 100)
    assert printed.getvalue().count("…") == page.for_terminal().count("…")  # rich's mark where it cuts a word off


def test_it_imports_nothing_heavy():
    code = (
        "import sys; from distillctl.cli import main; sys.argv = ['distillctl', 'guide', 'safety']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'numpy', 'yaml'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=project.environment())
    assert done.returncode == 0, done.stderr
