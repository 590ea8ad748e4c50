"""How large a student will be, from its files' headers, against the student that is built."""

import json

import numpy as np
import pytest
import yaml
from gguf import GGUFWriter

from distillctl import recipe as recipes
from distillctl.models import model_source
from distillctl.students import embeddings, parameters
from distillctl.students.truncated import keep_layers
from tests.fixtures import tiny, tiny_generate


def _recipe(folder, **student):
    document = {
        "name": "sizes",
        "task": {"kind": "generate"},
        "data": {"source": "rows.jsonl"},
        "contexts": {"full": {"template": "so {{ input }}"}},
        "teacher": {"model": "model"},
        "student": {"model": "model", **student},
        "train": {},
    }
    (folder / "sizes.yaml").write_text(yaml.safe_dump(document))
    return recipes.load(folder / "sizes.yaml")


def _projected(folder, **student):
    recipe = _recipe(folder, **student)
    return parameters.of_student(recipe, model_source.student(recipe))


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "gpt2"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_cut_and_trimmed_student_has_the_weights_that_were_projected(tmp_path, kind, tied):
    model = tiny_generate.decoder(kind, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path / "model")
    whole = model.num_parameters()
    assert parameters.count(model_source.model("model", tmp_path, revision=None, where="")) == whole
    assert _projected(tmp_path, kind="pretrained") == whole
    keep_layers(model, (1,))
    cut = model.num_parameters()
    assert _projected(tmp_path, kind="truncated", layers=[1]) == cut < whole
    embeddings.cut(model, np.arange(256 + 30))
    assert _projected(tmp_path, kind="truncated", layers=[1], vocabulary={"merges": 30}) == model.num_parameters() < cut
    assert _projected(tmp_path, kind="truncated", layers=[1], vocabulary={"merges": 9999}) == cut


def test_an_encoders_layers_and_word_pieces(tmp_path):
    tiny.model("bert").save_pretrained(tmp_path / "model")
    whole = _projected(tmp_path, kind="pretrained")
    assert 0 < _projected(tmp_path, kind="truncated", layers=[0]) < whole


def test_of_a_gguf_file_too(tmp_path):
    writer = GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_block_count(3)
    writer.add_embedding_length(8)
    shapes = {"token_embd.weight": (500, 8), "output_norm.weight": (8,)}
    shapes |= {f"blk.{layer}.ffn_up.weight": (20, 8) for layer in range(3)}
    for name, shape in shapes.items():
        writer.add_tensor(name, np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    cut = {"kind": "truncated", "layers": [0, 2], "model": "model.gguf"}
    assert _projected(tmp_path, kind="pretrained", model="model.gguf") == 4000 + 8 + 3 * 160
    assert _projected(tmp_path, **cut) == 4000 + 8 + 2 * 160
    assert _projected(tmp_path, **cut, vocabulary={"merges": 100}) == 356 * 8 + 8 + 2 * 160


def test_what_no_file_tells_is_not_guessed(tmp_path):
    new = {"kind": "from_config", "model_type": "llama", "tokenizer": {"vocabulary": 400}}
    document = json.loads(_recipe(tmp_path, kind="pretrained").model_dump_json())
    recipe = recipes.Recipe.model_validate(document | {"student": new})
    assert parameters.of_student(recipe, None) is None
    hub = model_source.model("some/model", tmp_path, revision=None, where="")
    assert parameters.count(hub) is None
    assert parameters.of_student(_recipe(tmp_path, kind="pretrained"), hub) is None
