"""README, guide and the other pages: what they show exists, and the safety topic's claims have their tests."""

import re
import shlex
import tomllib

import pytest
import typer
import typer.main
import yaml

from distillctl import guide
from distillctl import recipe as recipes
from distillctl.cli import app
from tests import ROOT
from tests.docs import command_reference, recipe_reference
from tests.docs.pages import PAGES, blocks, command_lines, links, prose, spans

OTHER_PROGRAMS = {
    *("--logits_all", "--nproc-per-node", "--use_fsdp"),  # llama-cpp-python, torchrun, accelerate
    "--set",
}
ids = [str(page.relative_to(ROOT)) for page in PAGES]


def parse(words: list[str]) -> None:
    """Parse a command line as the program would, without running it; SystemExit or an error says what is wrong."""
    command, args = typer.main.get_command(app), words
    while hasattr(command, "commands") and args and not args[0].startswith("-"):
        assert args[0] in command.commands, f"there is no command {' '.join(words)}"
        command, args = command.commands[args[0]], args[1:]
    known = {option for parameter in command.params for option in parameter.opts} | {"-h", "--help"}
    for word in args:
        if word.startswith("-"):
            assert word.partition("=")[0] in known, f"distillctl {shlex.join(words)}: there is no option {word}"
    if len(args) > 1 and not {"-h", "--help", "--version"} & set(args):
        command.make_context("distillctl", list(args))


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_commands_exist(page):
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for words in command_lines(page):
        if words[0] == "distillctl":
            parse(words[1:])
        else:
            assert set(words[1:]) <= targets, words


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_options_exist(page):
    commands = [typer.main.get_command(app)]
    for command in commands:
        commands.extend(getattr(command, "commands", {}).values())
    known = {option for command in commands for parameter in command.params for option in parameter.opts}
    shown = {option for code in spans(page) for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", code)}
    assert shown <= known | OTHER_PROGRAMS | {"--help"}


def test_a_command_that_does_not_exist_is_noticed():
    for line in ("colect RECIPE", "collect RECIPE --no-such-option", "bench RECIPE --port many", "bundle make PATH"):
        with pytest.raises((AssertionError, typer.BadParameter)):
            parse(line.split())
    parse(["bench", "RECIPE", "--port", "8000"])


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent.name == "guide"], ids=lambda page: page.stem)
def test_what_a_reader_may_copy_fits_a_terminal(page):
    for language in ("sh", "yaml", "python"):
        for code in blocks(page, language):
            assert max(map(len, code.splitlines())) <= command_reference.COLUMNS, code


def test_recipes_that_are_shown_load(tmp_path):
    """README's is whole; the guide shows sections, which fit into it."""
    whole = yaml.safe_load(blocks(ROOT / "README.md", "yaml")[0])
    shown = [code for page in PAGES for code in blocks(page, "yaml")]
    assert len(shown) >= 5
    for code in shown:
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({**whole, **yaml.safe_load(code)}))
        recipes.load(path)


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_resolve(page):
    for link in links(page):
        if not link.startswith(("https:", "#")):
            assert (page.parent / link.partition("#")[0]).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_to_headings_resolve(page):
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    anchors = {recipe_reference.anchor(heading) for heading in headings}
    assert {link[1:] for link in links(page) if link.startswith("#")} <= anchors


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_files_of_the_project_that_are_named_exist(page):
    for name in re.findall(r"(?<![\w./-])(?:distillctl|recipes|tests)/[\w/*.-]*\w", page.read_text(encoding="utf-8")):
        assert list(ROOT.glob(name)), name


def test_readme_is_short_and_names_every_topic():
    readme = ROOT / "README.md"
    assert readme.read_text(encoding="utf-8").count("\n") <= 200
    assert {f"distillctl/guide/{name}.md" for name in guide.NAMES} <= set(links(readme))


def test_every_command_is_in_readme_and_in_the_reference():
    known = set()
    for name, command in typer.main.get_command(app).commands.items():
        known |= {f"{name} {inner}" for inner in getattr(command, "commands", {})} or {name}
    assert known == set(command_reference.COMMANDS) - {""}
    shown = spans(ROOT / "README.md")
    assert all(any(code.startswith(f"distillctl {name}") for code in shown) for name in known)


def test_package_ships_the_guide():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "guide/*.md" in project["tool"]["setuptools"]["package-data"]["distillctl"]
    found = {path.stem for path in (ROOT / "distillctl" / "guide").glob("*.md")}
    assert found == set(guide.NAMES)


def test_commands_topic_is_what_help_prints():
    page = command_reference.PAGE.read_text(encoding="utf-8")
    assert command_reference.with_reference(page, command_reference.reference()) == page, "run: make docs"


# ── the safety topic ─────────────────────────────────────────────────────────────────────────────


def _claims() -> list[tuple[str, str]]:
    """Each kind of stranger with one line about it."""
    page = (ROOT / "distillctl" / "guide" / "safety.md").read_text(encoding="utf-8").partition("can and cannot do\n")[2]
    sections = re.split(r"^### (.+)\n", page, flags=re.MULTILINE)[1:]
    return [
        (subject, re.sub(r"\s+", " ", line))
        for subject, text in zip(sections[::2], sections[1::2], strict=True)
        for line in re.split(r"^- ", text, flags=re.MULTILINE)[1:]
    ]


def test_every_claim_has_its_tests():
    claims = _claims()
    assert len(claims) >= 32
    for subject, line in claims:
        matched = re.fullmatch(r"\*\*Can\*\* .+ \*\*[Cc]annot\*\* .+ Tests?: (.+?) ?", line)
        assert matched, f"{subject}: {line}"
        path = ""
        for name in re.findall(r"`([^`]*)`", matched[1]):
            file, _, test = name.partition("::")
            path = file or path
            assert re.search(rf"^def {test}\(", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE), name


def test_every_kind_of_stranger_has_a_claim():
    subjects = " ".join(subject for subject, _ in _claims())
    for subject in ("recipe", "model folder", "bundle", "run directory", "server"):
        assert subject in subjects


def test_examples_of_code_are_found():
    """The checks above see the pages as they are: each kind of page shows what they look for."""
    assert blocks(ROOT / "README.md", "sh")
    assert "```" not in prose(ROOT / "README.md")
    assert ["distillctl", "bundle", "verify", "runs/demo/bundle.zip"] in list(
        command_lines(ROOT / "distillctl" / "guide" / "phone.md")
    )
