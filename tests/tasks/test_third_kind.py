"""A third kind of task is one folder below tasks/, a section of the recipe, a template, and few edits elsewhere.

tests/fixtures/score has the files of such a kind. The test adds them to a copy of the package and runs it.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import distillctl
from tests.fixtures import project

pytestmark = [pytest.mark.long, pytest.mark.slow]

PACKAGE, ADDED = Path(distillctl.__file__).parent, Path(__file__).parents[1] / "fixtures" / "score" / "distillctl"
EDITS = {
    "recipe/task.py": [
        ("import Generate\n", "import Generate\nfrom distillctl.recipe.score import Score\n"),
        (
            'Annotated[Generate, Tag("generate")]',
            'Annotated[Generate, Tag("generate")] | Annotated[Score, Tag("score")]',
        ),
    ],
    "recipe/__init__.py": [
        (
            "from distillctl.recipe.task import Task\n",
            "from distillctl.recipe.score import Score\nfrom distillctl.recipe.task import Task\n",
        )
    ],
    "report/svg.py": [('    "majority":', '    "mean": ("Mean", "the teacher\'s mean score"),\n    "majority":')],
}
"""File of the package → (text, its replacement): all that a third kind changes where no file is its own."""
MOST_EDITED, MOST_ADDED = 5, 13


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with a package that has the third kind, and a whole run of it."""
    root = tmp_path_factory.mktemp("third")
    shutil.copytree(PACKAGE, root / "distillctl", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ADDED, root / "distillctl", dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name, pairs in EDITS.items():
        file = root / "distillctl" / name
        text = file.read_text()
        for old, new in pairs:
            assert text.count(old) == 1, (name, old)
            text = text.replace(old, new)
        file.write_text(text)
    recipe = project.make(root / "project", rows=120, bench={"processes": 1})
    rows = [json.loads(line) for line in (root / "project" / "rows.jsonl").read_text().splitlines()]
    scored = [{**row, "reference": len(row["input"]) % 5 / 4} for row in rows]
    (root / "project" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in scored))
    task = {"kind": "score", "low": "live", "high": "long", "answer_prefix": " "}
    recipe.write_text(yaml.safe_dump({**yaml.safe_load(recipe.read_text()), "task": task}))
    done = command(root, "run", recipe, "--run-dir", root / "run", "--json")
    assert done.returncode == 0, done.stderr
    return root, recipe


def command(root, *args):
    """Run the copy of the package."""
    words = [sys.executable, "-m", "distillctl", *map(str, args)]
    env = {**project.environment(), "PYTHONPATH": str(root)}
    return subprocess.run(words, cwd=root, env=env, capture_output=True, text=True, timeout=600, check=False)


def test_it_is_a_folder_and_few_edits():
    assert len(EDITS) <= MOST_EDITED
    assert len([path for path in ADDED.rglob("*") if path.is_file() and "__pycache__" not in path.parts]) <= MOST_ADDED


def test_every_stage_is_committed(finished):
    root, recipe = finished
    done = command(root, "status", recipe, "--run-dir", root / "run", "--json")
    states = {stage["stage"]: stage["state"] for stage in json.loads(done.stdout)["stages"]}
    assert {states[stage] for stage in ("collect", "train", "export", "quantize", "bench", "report")} == {"fresh"}


def test_the_report_has_its_scores(finished):
    root, recipe = finished
    done = command(root, "report", recipe, "--run-dir", root / "run", "--format", "json")
    facts = json.loads(done.stdout)
    assert facts["task"] == "score"
    assert facts["metric"] == "closeness"
    assert {"ceiling", "floor", "student", "deployed", "mean"} <= facts["arms"].keys()
    assert all(0 <= arm["score"] <= 1 for arm in facts["arms"].values())
    assert facts["controls"]["leads"]["mean"].keys() == {"deployed", "student"}
    page = (root / "run" / "report" / "report.html").read_text()
    assert "The scores" in page
    assert (root / "run" / "quantize" / "README.md").read_text().count("closeness")


def test_a_reference_that_is_no_score_is_refused(finished, tmp_path):
    root, recipe = finished
    folder = shutil.copytree(recipe.parent, tmp_path / "project")
    (folder / "rows.jsonl").write_text('{"input": "how old is the city", "reference": "often"}\n' * 3)
    done = command(root, "collect", folder / "recipe.yaml", "--run-dir", tmp_path / "run")
    assert done.returncode == 3
    assert "no number between 0 and 1" in done.stderr
    assert "Traceback" not in done.stderr
