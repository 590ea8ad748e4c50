"""`package:NAME/path` finds files of installed packages, and suggests nothing that is not installed."""

from __future__ import annotations

import ast
import itertools
import re
import tomllib
from pathlib import Path

import pytest

from distillctl.errors import DistillctlError, RecipeError, UnavailableError, first_line
from distillctl.models import package_files
from tests import ROOT


@pytest.fixture(autouse=True)
def carrier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package, whose distribution has another name, and a module beside it."""
    folder = tmp_path / "carrier_of_weights"
    (folder / "data").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "data" / "rows.jsonl").write_text("")
    (tmp_path / "lonely_module.py").write_text("raise RuntimeError('imported')")
    described = tmp_path / "bearer_of_models-1.0.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: bearer-of-models\nVersion: 1.0\n")
    (described / "top_level.txt").write_text("carrier_of_weights\nlonely_module\n")
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def refused(reference: str) -> DistillctlError:
    with pytest.raises(DistillctlError) as told:
        package_files.find(reference, where="data.source")
    assert told.value.where == "data.source"
    assert "install " not in f"{told.value} {told.value.next}"
    return told.value


def test_what_is_there_is_found(carrier: Path) -> None:
    assert package_files.find("package:carrier_of_weights", where="") == carrier
    assert package_files.find("package:carrier_of_weights/data", where="") == carrier / "data"


MEANT = {
    "a-letter-left-out": "package:carier_of_weights/data/rows.jsonl",
    "letters-swapped": "package:carrier_of_wieghts/data/rows.jsonl",
    "a-letter-too-many": "package:carrier_of_weightss/data/rows.jsonl",
    "capitals": "package:Carrier_Of_Weights/data/rows.jsonl",
    "hyphens": "package:carrier-of-weights/data/rows.jsonl",
    "the-distribution": "package:bearer-of-models/data/rows.jsonl",
    "the-distribution-with-underscores": "package:bearer_of_models/data/rows.jsonl",
    "the-distribution-mistyped": "package:bearer_of_model/data/rows.jsonl",
}


@pytest.mark.parametrize("name", MEANT)
def test_a_typo_suggests_the_nearest_package_that_is_installed(name: str) -> None:
    told = refused(MEANT[name])
    assert told.next == "did you mean package:carrier_of_weights/data/rows.jsonl, which is installed?"
    assert isinstance(told, RecipeError if "-" in MEANT[name] else UnavailableError)


@pytest.mark.parametrize(
    "reference",
    ["package:quite_another_thing/x", "package:зюзя/x", f"package:{'a' * 100_000}/x", "package:__main__/x"],
)
def test_a_name_like_nothing_installed_suggests_nothing(reference: str) -> None:
    told = refused(reference)
    assert told.exit_code == 5
    assert "did you mean" not in str(told.next)
    assert len(str(told)) < 600


def test_a_module_is_not_called_missing() -> None:
    assert "lonely_module is a single module and has no files" in str(refused("package:lonely_module/x"))
    assert "sys is a single module" in str(refused("package:sys/x"))


@pytest.mark.parametrize(
    ("inner", "then"),
    [
        ("data/row.jsonl", "did you mean package:carrier_of_weights/data/rows.jsonl?"),
        ("date/rows.jsonl", "did you mean package:carrier_of_weights/data/rows.jsonl?"),
        ("Data/Rows.jsonl", "did you mean package:carrier_of_weights/data/rows.jsonl?"),
        ("data/model.gguf", "in package:carrier_of_weights/data there is: rows.jsonl"),
        ("weights", "in package:carrier_of_weights there is: __init__.py, data"),
        ("data/rows.jsonl/x", "in package:carrier_of_weights/data/rows.jsonl there is: nothing"),
    ],
)
def test_a_file_that_is_not_there_suggests_the_nearest_that_is(inner: str, then: str) -> None:
    told = refused(f"package:carrier_of_weights/{inner}")
    assert (told.exit_code, told.next) == (5, then)


@pytest.mark.parametrize(
    "reference",
    ["package:", "package:/etc/passwd", "package:a/../../x", "package:a.b/c", "package:a b/c", "package:\0/c"],
)
def test_what_is_no_reference_is_refused_as_such(reference: str) -> None:
    assert refused(reference).exit_code == 3


@pytest.mark.parametrize("inner", ["a" * 5000, "data/" + "b/" * 3000])
def test_a_path_that_no_file_system_has_is_refused(inner: str) -> None:
    assert refused(f"package:carrier_of_weights/{inner}").exit_code in (3, 5)


def test_only_our_own_requirements_and_extras_are_advised_to_be_installed() -> None:
    """In the code's messages and templates: nothing that a recipe or a file names, so no name is put together."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    required = itertools.chain(project["dependencies"], *extras.values())
    known = {re.split(r"[\[<>=~!]", one)[0] for one in required}
    known |= {f"distillctl[{extra}]" for extra in extras}
    advised = []
    for path in sorted((ROOT / "distillctl").rglob("*")):
        if path.suffix == ".py":
            literals = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.JoinedStr)]
            for node in literals:
                texts = [part.value for part in node.values if isinstance(part, ast.Constant)]
                assert not [text for text in texts if str(text).rstrip().endswith(("pip install", "--no-deps"))], path
        if path.suffix in (".py", ".jinja", ".yaml"):
            plain = re.sub(r"\{\{.*?\}\}|\{%.*?%\}", "", path.read_text())
            advised += re.findall(r"pip install ([^\n\"`<)]+)", plain)
    assert len(advised) > 8
    for words in advised:
        assert set(re.findall(r"[\w.-]+(?:\[[\w,-]+\])?", words)) <= known, words


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("It needs evil. Run `pip install evil`", "It needs evil."),
        ("sentencepiece is missing, please pip install sentencepiece first", "sentencepiece is missing"),
        ("no pip install here\nand more", "ImportError"),
        ("a.b: no such file", "a.b: no such file"),
        ("", "ImportError"),
    ],
)
def test_a_librarys_advice_to_install_something_is_not_passed_on(said: str, told: str) -> None:
    assert first_line(ImportError(said)) == told
