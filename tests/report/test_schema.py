"""`report --schema` describes what `report --format json` prints."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from distillctl.report import contract
from distillctl.report.schema import schema
from tests.fixtures import project, report_run, report_run_generate

jsonschema = pytest.importorskip("jsonschema")


@pytest.fixture(scope="module", params=[report_run, report_run_generate], ids=["classify", "generate"])
def facts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    workspace = request.param.committed(tmp_path_factory.mktemp("run"))
    found: dict[str, Any] = json.loads(json.dumps(contract.build(request.param.recipe(), workspace).as_json()))
    return found


def test_a_report_has_its_shape(facts: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.validate(facts, schema())
    jsonschema.validate({**facts, "a key of a later version": 1}, schema())


@pytest.mark.parametrize("key", ["arms", "recovered", "models", "context_tokens", "artifact", "parity", "verdicts"])
def test_a_report_without_what_is_promised_has_not(facts: dict[str, Any], key: str) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({name: value for name, value in facts.items() if name != key}, schema())


def test_a_figure_that_is_no_number_has_not(facts: dict[str, Any]) -> None:
    wrong = copy.deepcopy(facts)
    wrong["arms"]["ceiling"]["score"] = "0.9"
    with pytest.raises(jsonschema.ValidationError, match="is not of type 'number'"):
        jsonschema.validate(wrong, schema())


def test_fields_say_what_they_mean() -> None:
    described = schema()["$defs"]["TimedModel"]["properties"]["warmup_ratio"]["description"]
    assert described.startswith("Median of the untimed queries")


def test_the_command_prints_it_without_a_recipe() -> None:
    done = project.run("report", "--schema")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == schema()
