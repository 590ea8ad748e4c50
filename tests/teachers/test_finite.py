"""Weights that are not finite numbers: the model is named, and no file of ours is blamed."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from distillctl.errors import UnavailableError
from distillctl.recipe import Sampling
from distillctl.teachers import finite, generation, label_scoring, response_scoring
from tests.fixtures import project, tiny_generate

pytestmark = pytest.mark.slow

VIEWS = [[5, 6, 7, 8], [9, 10, 11]]
BROKEN = {
    "NaN in the head": ("lm_head.weight", math.nan),
    "infinity in the head": ("lm_head.weight", math.inf),
    "NaN in the embeddings": ("model.embed_tokens.weight", math.nan),
    "NaN in a norm": ("model.norm.weight", math.nan),
    "infinity in a projection": ("model.layers.0.mlp.down_proj.weight", math.inf),
    "minus infinity in a projection": ("model.layers.1.self_attn.v_proj.weight", -math.inf),
    "so large that it overflows": ("model.layers.0.mlp.down_proj.weight", 3e38),
}


@pytest.fixture(params=BROKEN)
def model(request):
    name, value = BROKEN[request.param]
    model = tiny_generate.decoder()
    with torch.no_grad():
        dict(model.named_parameters())[name][..., :2] = value
    return model.eval()


def test_every_way_of_asking_tells_of_the_teacher(model):
    ways = [
        lambda: label_scoring.score(model, VIEWS, [[[5], [6, 7]]] * 2, batch_tokens=64),
        lambda: response_scoring.score(model, VIEWS, [[5, 6], [7]], lambda row, found: None, batch_tokens=64),
        lambda: generation.generate(model, VIEWS, stop=[1], max_new_tokens=3, batch_tokens=64),
        lambda: generation.generate(
            model, VIEWS, stop=[1], max_new_tokens=3, batch_tokens=64, sampling=Sampling(n=2, temperature=1.0)
        ),
    ]
    for way in ways:
        with pytest.raises(UnavailableError, match="the teacher gives NaN instead of probabilities") as told:
            way()
        assert told.value.where == "teacher.model"


def test_a_distribution_may_have_impossible_tokens():
    found = finite.log_softmax(torch.tensor([[-math.inf, 0.0, 0.0], [0.0, -math.inf, -math.inf]]))
    assert torch.equal(found.exp(), torch.tensor([[0.0, 0.5, 0.5], [1.0, 0.0, 0.0]]))
    with pytest.raises(UnavailableError):
        finite.log_softmax(torch.full((1, 3), -math.inf))
    with pytest.raises(UnavailableError):
        finite.log_softmax(torch.tensor([[0.0, 1.0, 2.0], [0.0, math.inf, 2.0]]))


def test_the_commands_name_the_model(tmp_path):
    recipe, run = project.make(tmp_path, rows=24, data={"eval_rows": 8}), tmp_path / "run"
    sound = (tmp_path / "teacher" / "model.safetensors").read_bytes()
    break_weights(tmp_path / "teacher", "lm_head.weight")
    done = project.run("collect", recipe, "--run-dir", run)
    assert done.returncode == 5, done.stderr
    assert "error: teacher.model: the teacher gives NaN" in done.stderr
    assert "damaged" not in done.stderr
    assert not list(run.glob("collect/shards/*"))

    (tmp_path / "teacher" / "model.safetensors").write_bytes(sound)
    done = project.run("collect", recipe, "--run-dir", run)
    assert done.returncode == 0, done.stderr
    break_weights(tmp_path / "student", "encoder.layer.0.output.dense.weight")
    done = project.run("train", recipe, "--run-dir", run)
    assert done.returncode == 5, done.stderr
    assert "the student's weights were not finite numbers from the start: " in done.stderr
    assert done.stderr.count("error:") == 1


def break_weights(folder, name):
    weights = load_file(folder / "model.safetensors")
    weights[name][0, 0] = math.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
