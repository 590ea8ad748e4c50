"""All stages with a teacher that is no file: to the report and to the bundle, for labels and for texts."""

import json

import pytest
import yaml

from distillctl import pipeline
from distillctl import recipe as recipes
from distillctl.report import contract, markdown
from distillctl.run_dir.workspace import Workspace
from tests.fixtures import project, real_run_generate, served_project, stub_server
from tests.fixtures.report_run import reported

pytestmark = pytest.mark.slow


def _run(path, stub, **sections):
    """Run the recipe at ``path`` with the stub as its teacher, all stages and the bundle."""
    tree = yaml.safe_load(path.read_text()) | sections
    tree["teacher"] = {**served_project.TEACHER, "base_url": stub.url, **sections.get("teacher", {})}
    path.write_text(yaml.safe_dump(tree))
    recipe, workspace = recipes.load(path), Workspace(path.parent / "run")
    assert [ran.stage for ran in pipeline.run(recipe, workspace)][-1] == "report"
    assert [(s.stage, s.why) for s in pipeline.status(recipe, workspace) if s.state != "fresh"] == []
    assert all(ran.reused for ran in pipeline.run(recipe, workspace))
    pipeline.stage("bundle", recipe, workspace)
    facts = contract.build(recipe, workspace).as_json()
    assert "teacher" not in facts["models"]
    assert {"fp32", "deployed"} <= set(facts["models"])
    assert stub_server.MODEL in markdown.render(reported(facts)) or facts["headline"].endswith("a query")
    page = (workspace.folder("report") / "report.html").read_text()
    assert f"served by {stub.url}" in page
    card = (workspace.folder("export") / "README.md").read_text()
    assert f"{stub_server.MODEL}, served by {stub.url}" in card
    bundle = json.loads(next(workspace.root.rglob("bundle.json")).read_text())
    assert stub_server.MODEL in json.dumps(bundle)
    return facts


def test_labels_of_a_served_teacher_go_through_to_the_report(tmp_path):
    task = {"labels": ["number", "person", "place"], "prior": "batch"}
    with stub_server.serve(stub_server.Hashed(["number", "person", "place", "in", "the", "is"])) as stub:
        facts = _run(project.make(tmp_path), stub, task=task)
    assert facts["arms"]["ceiling"]["n"] == 40


@pytest.mark.parametrize("kept", ["top_k", "text"])
def test_texts_of_a_served_teacher_go_through_to_the_report(tmp_path, kept):
    path = real_run_generate.recipe(tmp_path).path
    task = yaml.safe_load(path.read_text())["task"] | {"soft_labels": {"kind": kept}}
    train = {"batch_rows": 8, "threads": 1, "epochs": 1}
    more = {"tokenizer": "teacher"} if kept == "top_k" else {}
    train |= {} if kept == "top_k" else {"loss": [{"kind": "cross_entropy"}]}
    with stub_server.serve(served_project.save_teacher(tmp_path)) as stub:
        facts = _run(path, stub, task=task, train=train, teacher=more)
    assert facts["necessity"] is None
    assert (facts["per_token"]["student"]["kl"] is None) == (kept == "text")
