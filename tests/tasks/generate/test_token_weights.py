"""The weights of response tokens: laws, and what collect and train make of them on a tiny teacher."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from distillctl import pipeline
from distillctl import recipe as recipes
from distillctl.commands import dry_run
from distillctl.errors import RecipeError
from distillctl.recipe import Dense, ForwardKL, Recipe, Text, TopK, Train
from distillctl.run_dir.workspace import Workspace
from distillctl.soft_labels import response_shards as store
from distillctl.soft_labels.dense import DenseLabels
from distillctl.soft_labels.response_shards import Responses
from distillctl.soft_labels.text import TextLabels
from distillctl.soft_labels.top_k import TopKLabels
from distillctl.tasks.generate import token_weights
from distillctl.tasks.generate.objective import Generation
from distillctl.tasks.generate.response_rows import ResponseRows
from tests.fixtures import real_run_generate, tiny_generate
from tests.tasks.generate.test_objective import taught

pytestmark = pytest.mark.slow

needs = arrays(np.float32, st.integers(1, 40), elements=st.floats(0, 50, width=32))


@given(needs)
def test_the_mean_weight_is_one_and_no_token_is_forgotten(need: np.ndarray) -> None:
    found = token_weights.weights(need, float(need.mean(dtype=np.float64)))
    assert found.mean() == pytest.approx(1, rel=1e-4)
    assert found.min() >= 0.5 - 1e-6
    assert (np.diff(found[np.argsort(need)]) >= 0).all()


def test_without_any_need_all_tokens_count_the_same() -> None:
    assert token_weights.weights(np.zeros(3, np.float32), 0.0).tolist() == [1, 1, 1]


def test_the_entropy_of_k_likeliest_tokens_and_a_tail_is_that_of_the_distribution_at_k_equal_v() -> None:
    log_probs = torch.randn(6, 9, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    ids = [np.arange(4), np.arange(2)]

    def entropies(codec: DenseLabels | TopKLabels) -> np.ndarray:
        parts = [codec.keep(part, torch.Generator()) for part in log_probs.split([4, 2])]
        labels = {field.name: [part[field.name] for part in parts] for field in codec.fields}
        part = Responses(["a", "b"], [0, 0], ["", ""], ids, np.zeros(2, bool), labels)
        found = token_weights._entropies(part, codec)
        assert [*map(len, found)] == [4, 2]
        return np.concatenate(found)

    exact = -(log_probs.exp() * log_probs).sum(-1).numpy()
    np.testing.assert_allclose(entropies(DenseLabels(Dense())), exact, rtol=1e-3)
    np.testing.assert_allclose(entropies(TopKLabels(TopK(k=9, tail_draws=0))), exact, rtol=2e-3)
    assert (entropies(TopKLabels(TopK(k=2, tail_draws=0))) < exact).all()


def test_the_loss_is_the_weighted_sum_over_tokens() -> None:
    rows = taught(tiny_generate.decoder(seed=1), 6)
    student, spec = tiny_generate.decoder(seed=2).eval(), Train()

    def loss(weights: list[np.ndarray]) -> float:
        weighed = ResponseRows(
            rows.views, rows.responses, rows.targets, rows.vocabulary,
            weights=lambda some: np.concatenate([weights[row] for row in some]),
        )  # fmt: skip
        objective = Generation(weighed.take([*range(6)]), rows, (ForwardKL(),), spec)
        return float(objective.loss(student, [4, 0, 5]).detach())

    lengths = [len(response) for response in rows.responses]
    ones = [np.ones(length, np.float32) for length in lengths]
    plain = float(Generation(rows, rows, (ForwardKL(),), spec).loss(student, [4, 0, 5]).detach())
    assert loss(ones) == pytest.approx(plain, rel=1e-6)
    alone = []
    for row in (4, 0, 5):
        for token in range(lengths[row]):
            only = [np.zeros(length, np.float32) for length in lengths]
            only[row][token] = 3.0
            alone.append(loss(only))
    assert sum(alone) == pytest.approx(3 * plain, rel=1e-4)
    assert min(alone) > 0


# ── collect and train ────────────────────────────────────────────────────────────────────────────


def recipe_of(folder: Path, **train: object) -> Recipe:
    real_run_generate.recipe(folder)
    made = yaml.safe_load((folder / "recipe.yaml").read_text())
    made["train"] |= {"epochs": 1, "control": False, **train}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(made))
    return recipes.load(folder / "recipe.yaml")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose recipe weighs nothing, collected and trained."""
    folder = tmp_path_factory.mktemp("texts")
    recipe = recipe_of(folder)
    for stage in ("collect", "train"):
        pipeline.stage(stage, recipe, Workspace(folder / "run"))
    return folder


@pytest.fixture
def project(plain: Path, tmp_path: Path) -> Path:
    return shutil.copytree(plain, tmp_path / "p")


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "run/collect/shards").iterdir()}


def test_turning_the_weights_on_asks_only_how_likely_the_answers_are_without_the_context(project: Path) -> None:
    before = shards(project)
    planned = dry_run.plan(recipe_of(project), Workspace(project / "run"), ["collect"])
    recipe, workspace = recipe_of(project, weights="context_kl"), Workspace(project / "run")
    more = dry_run.plan(recipe, workspace, ["collect"])
    assert more["arms"]["simplified"]["rows"] == planned["arms"]["simplified"]["rows"] + 24
    assert more["collect"]["forward_tokens"] > planned["collect"]["forward_tokens"]
    facts = pipeline.stage("collect", recipe, workspace).manifest.facts
    assert facts["scored_rows"] == 24
    after = shards(project)
    assert {name: after.get(name) for name in before} == before
    assert all(name.startswith("simplified-train-") for name in after.keys() - before.keys())
    ceiling, floor = (store.read(workspace, arm, "train", TextLabels(Text())) for arm in ("full", "simplified"))
    assert floor.context_kl is not None
    assert [*map(len, floor.context_kl)] == [*map(len, ceiling.token_ids)]
    assert np.concatenate(floor.context_kl).min() >= 0
    assert np.concatenate(floor.context_kl).max() > 0.01
    pipeline.stage("collect", recipe_of(project), workspace)
    assert shards(project) == before


@pytest.mark.parametrize("kind", ["context_kl", "entropy"])
def test_the_student_learns_with_them(project: Path, plain: Path, kind: str) -> None:
    recipe, workspace = recipe_of(project, weights=kind), Workspace(project / "run")
    for stage in ("collect", "train"):
        pipeline.stage(stage, recipe, workspace)
    weighed, unweighed = ((folder / "run/train/model/model.safetensors").read_bytes() for folder in (project, plain))
    assert weighed != unweighed
    assert workspace.manifest("train").recipe["train"]["weights"] == kind  # type: ignore[union-attr]


def test_a_student_with_other_tokens_is_refused(project: Path) -> None:
    tiny_generate.bpe_tokenizer(["zzz yyy the king"] * 20, 270, appends_eos=True).save_pretrained(project / "other")
    tiny_generate.decoder().save_pretrained(project / "other")
    recipe = recipe_of(project, weights="entropy", loss=[{"kind": "cross_entropy"}])
    made = yaml.safe_load((project / "recipe.yaml").read_text())
    made["student"]["model"] = "other"
    (project / "recipe.yaml").write_text(yaml.safe_dump(made))
    recipe, workspace = recipes.load(project / "recipe.yaml"), Workspace(project / "run")
    pipeline.stage("collect", recipe, workspace)
    with pytest.raises(RecipeError, match="the student has other tokens"):
        pipeline.stage("train", recipe, workspace)


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"train": {"weights": "context_kl"}, "task": {"labels": ["a", "b"]}}, "labels have no tokens to weigh"),
        ({"train": {"weights": "entropy"}, "task": {"kind": "generate", "soft_labels": {"kind": "text"}}},
         "text keeps no distribution"),
        ({"train": {"weights": "context_kl"},
          "task": {"kind": "generate", "responses": {"kind": "sampling", "n": 2}}}, "one response a row"),
        ({"train": {"weights": "context_kl"}, "task": {"kind": "generate"},
          "teacher": {"kind": "openai", "base_url": "http://localhost:1/v1", "model": "m", "tokenizer": "t"}},
         "a served teacher"),
    ],
)  # fmt: skip
def test_where_they_cannot_be_known_the_recipe_is_refused(
    tmp_path: Path, sections: dict[str, dict[str, object]], told: str
) -> None:
    base: dict[str, object] = {
        "name": "r", "data": {"source": "rows.jsonl"}, "contexts": {"full": {"template": "Sort: {{ input }}"}},
        "teacher": {"model": "teacher"}, "student": {"kind": "pretrained", "model": "student"},
    }  # fmt: skip
    if sections["task"].get("soft_labels") == {"kind": "text"}:
        sections["train"] |= {"loss": [{"kind": "cross_entropy"}]}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(base | sections))
    with pytest.raises(RecipeError) as error:
        recipes.load(tmp_path / "r.yaml")
    assert "train.weights: " in str(error.value)
    assert told in str(error.value)
