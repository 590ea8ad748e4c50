"""export of models that write: the graphs say what PyTorch says, token for token, or nothing is committed."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime as ort
import pytest
from onnx import numpy_helper
from transformers import AutoTokenizer

from distillctl.data import view_table
from distillctl.errors import GateFailed, RecipeError
from distillctl.graphs import decoder_trace, genai_builder, seq2seq, sidecar_files, tracing
from distillctl.run_dir.facts import DataFacts
from distillctl.run_dir.workspace import file_digest, tree_digest
from distillctl.runtimes.genai import GenaiDecoder
from distillctl.runtimes.onnx_generator import open_generator
from distillctl.snippets.reading import Reading
from distillctl.stages import export
from distillctl.tasks.generate import card, parity
from distillctl.tasks.generate.facts import GenerateTrain
from distillctl.tasks.generate.parity import ParityRows
from tests.fixtures import exported_generate, tiny_generate
from tests.fixtures.exported_generate import MAX_LENGTH, MAX_NEW_TOKENS, STOP_IDS, exported, plain_answer

pytestmark = [pytest.mark.long, pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

LLAMA, T5 = ("llama", "genai"), ("t5", "seq2seq")
SLOW = [
    ("llama", "trace"),
    ("gpt2", "trace"),
    ("gemma3_text", "genai"),
    ("gemma3_text", "trace"),
    ("qwen2", "genai"),
    ("marian", "seq2seq"),
]
KINDS = [LLAMA, T5, *(pytest.param(kind, marks=pytest.mark.slow) for kind in SLOW)]


def _name(kind: tuple[str, str]) -> str:
    return "-".join(kind)


@pytest.fixture(scope="module", params=KINDS, ids=_name)
def of_kind(request):
    return exported(*request.param)


def _rows(graph, count: int = 50) -> ParityRows:
    """Views, and for each the tokens of another text as its response."""
    texts, said = tiny_generate.texts(count), tiny_generate.texts(count, seed=1)
    ends = [[*graph.encode(text), tiny_generate.EOS_ID] for text in said]
    return ParityRows([f"row-{index}" for index in range(count)], [graph.encode(text) for text in texts], ends)


def _check(model, graph, rows, **options):
    return parity.check_parity(
        model, graph, rows, **{"allowed": 1e-4, "prompts": 50, "max_new_tokens": MAX_NEW_TOKENS, **options}
    )


# ── the graphs ───────────────────────────────────────────────────────────────────────────────────


def test_greedy_answers_are_pytorchs_on_all_of_50_prompts(of_kind):
    graph = of_kind.open()
    views = [graph.encode(text) for text in tiny_generate.texts(50)]
    answers = [graph.generate(view, MAX_NEW_TOKENS) for view in views]
    assert answers == [plain_answer(of_kind.model, view) for view in views]
    assert len({tuple(answer) for answer in answers}) > 25  # they are not all the same one


def test_parity_finds_the_same(of_kind):
    graph = of_kind.open()
    found = _check(of_kind.model, graph, _rows(graph))
    assert (found.rows, found.prompts, found.equal_prompts, found.ties) == (50, 50, 50, 0)
    assert 0 <= found.max_logit_difference < 1e-5


def test_inputs_and_outputs_have_optimums_names_and_open_axes(of_kind):
    names = {"input_ids", "attention_mask"}
    files = {"model.onnx": (names, set())}
    if of_kind.model.config.is_encoder_decoder:
        files = {
            "encoder_model.onnx": (names, {"last_hidden_state"}),
            "decoder_model_merged.onnx": ({"input_ids", "encoder_attention_mask", "encoder_hidden_states"}, set()),
        }
    for file, (inputs, outputs) in files.items():
        session = ort.InferenceSession(of_kind.folder / file)
        shapes = {value.name: value.shape for value in [*session.get_inputs(), *session.get_outputs()]}
        caches = {name for name in shapes if re.fullmatch(r"past_key_values\.[01]\.((de|en)coder\.)?(key|value)", name)}
        presents = {name.replace("past_key_values", "present") for name in caches}
        assert inputs | outputs | caches | presents | {"logits", "position_ids"} >= set(shapes)
        assert inputs | outputs | presents <= set(shapes)
        assert len(caches) == (0 if file.startswith("encoder") else 8 if "decoder" in file else 4)
        assert all(isinstance(shapes[name][0], str) and isinstance(shapes[name][2], str) for name in caches)
        assert all(isinstance(shapes[name][1], int) and isinstance(shapes[name][3], int) for name in caches)


def test_no_symbol_no_path_and_no_commit_is_left(of_kind):
    for path in of_kind.folder.glob("*.onnx"):
        model = onnx.load(path)
        values = [*model.graph.value_info, *model.graph.input, *model.graph.output]
        axes = {d.dim_param for v in values for d in v.type.tensor_type.shape.dim if d.dim_param}
        assert axes
        assert not [axis for axis in axes if re.search(r"\b[su]\d+\b", axis)]
        content = path.read_bytes()
        assert b"site-packages" not in content
        assert str(of_kind.source).encode() not in content
        assert "+" not in model.producer_version.replace("+cpu", "")


def test_every_weight_is_stored_once(of_kind):
    """The embedding is the head too; the encoder's file has its own copy of it, which is what optimum loads."""
    model = of_kind.model
    table = model.get_input_embeddings().weight.numel()
    allowed = {"model.onnx": model.num_parameters()}
    if model.config.is_encoder_decoder:
        encoder = sum(p.numel() for p in model.get_encoder().parameters())
        allowed = {"encoder_model.onnx": encoder}
        allowed["decoder_model_merged.onnx"] = model.num_parameters() - encoder + table
    for file, parameters in allowed.items():
        values = onnx_ir.load(of_kind.folder / file).graph.initializers.values()
        stored = sum(int(np.prod(value.shape)) for value in values)
        assert stored < parameters + table / 2  # position tables and constants, and no second embedding


def test_the_graphs_bytes_are_counted(of_kind):
    assert of_kind.graph.bytes == sum(path.stat().st_size for path in of_kind.folder.glob("*.onnx*"))


@pytest.mark.parametrize("of_kind", [LLAMA, pytest.param(T5, marks=pytest.mark.slow)], indirect=True, ids=_name)
def test_again_gives_the_same_bytes_and_leaves_the_process_as_it_was(of_kind, tmp_path, capfd):
    builder = "seq2seq" if of_kind.model.config.is_encoder_decoder else "genai"
    before = sys.path.copy(), os.getcwd()
    exported_generate.export(of_kind.model, builder, of_kind.source, tmp_path)
    assert capfd.readouterr().out == ""
    assert (sys.path, os.getcwd()) == before
    for path in of_kind.folder.glob("*.onnx"):
        assert file_digest(tmp_path / path.name) == file_digest(path)
    assert {path.name for path in tmp_path.iterdir()} <= {path.name for path in of_kind.folder.iterdir()}


def test_weights_beyond_the_limit_lie_in_one_plain_file_beside_the_graph(tmp_path, monkeypatch):
    """And below it, inside: nothing points to where the builder wrote them."""
    source = exported(*LLAMA)
    monkeypatch.setattr(tracing, "MAX_EMBEDDED_BYTES", 1000)
    graph = genai_builder.export(source.source, tmp_path, STOP_IDS, MAX_LENGTH)
    sidecar_files.copy(source.source, tmp_path, ["input_ids", "attention_mask"], max_length=MAX_LENGTH)
    files = {path.name: path.stat().st_size for path in tmp_path.glob("model.onnx*")}
    assert set(files) == {"model.onnx", "model.onnx.data"}
    assert graph.bytes == sum(files.values())
    assert not [path for path in tmp_path.iterdir() if path.is_symlink()]
    assert _locations(tmp_path / "model.onnx") == {"model.onnx.data"}
    assert _locations(source.folder / "model.onnx") == set()
    beyond, within = open_generator(tmp_path), source.open()
    view = within.encode("the old king")
    assert beyond.generate(view, MAX_NEW_TOKENS) == within.generate(view, MAX_NEW_TOKENS)


def _locations(path: Path) -> set[str]:
    """Files that hold the graph's weights."""
    tensors = onnx.load(path, load_external_data=False).graph.initializer
    return {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}


@pytest.mark.slow
def test_a_traced_decoder_takes_padded_batches():
    """As optimum feeds them: padding on the left, positions that count real tokens."""
    traced = exported("gpt2", "trace")
    session, graph = ort.InferenceSession(traced.folder / "model.onnx"), traced.open()
    views = [graph.encode(text) for text in tiny_generate.texts(3)]
    width = max(map(len, views))
    ids = np.array([[0] * (width - len(view)) + view for view in views])
    mask = np.array([[0] * (width - len(view)) + [1] * len(view) for view in views])
    positions = np.maximum(mask.cumsum(-1) - 1, 0)
    feed = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    past = {
        v.name: np.zeros((3, v.shape[1], 0, v.shape[3]), np.float32) for v in session.get_inputs() if "past" in v.name
    }
    logits = session.run(["logits"], feed | past)[0]
    for row, view in enumerate(views):
        np.testing.assert_allclose(logits[row, -1], graph.score(view, [0])[0], atol=1e-4)


@pytest.mark.parametrize("of_kind", [T5, pytest.param(SLOW[-1], marks=pytest.mark.slow)], indirect=True, ids=_name)
def test_padded_encoder_inputs_in_a_batch_and_cross_attention_made_once(of_kind):
    graph, model = of_kind.open(), of_kind.model
    encoder, decoder = (
        ort.InferenceSession(of_kind.folder / name) for name in ("encoder_model.onnx", "decoder_model_merged.onnx")
    )
    views = [graph.encode(text) for text in tiny_generate.texts(5)]
    width = max(map(len, views))
    ids = np.array([view + [0] * (width - len(view)) for view in views])
    mask = np.array([[1] * len(view) + [0] * (width - len(view)) for view in views])
    assert mask.min() == 0
    (states,) = encoder.run(None, {"input_ids": ids, "attention_mask": mask})
    past = {
        v.name: np.zeros((5, v.shape[1], 0, v.shape[3]), np.float32) for v in decoder.get_inputs() if "past" in v.name
    }
    names = [value.name for value in decoder.get_outputs()]
    step = np.full((5, 1), model.config.decoder_start_token_id)
    answers = np.empty((5, 0), np.int64)
    for _ in range(8):
        feed = {"input_ids": step, "encoder_attention_mask": mask, "encoder_hidden_states": states}
        outputs = dict(zip(names, decoder.run(names, feed | past), strict=True))
        past = {name: outputs[name.replace("past_key_values", "present")] for name in past}
        step = outputs["logits"][:, -1:].argmax(-1)
        answers = np.concatenate([answers, step], 1)
        states = np.full_like(states, np.nan)  # from the second step on nobody reads them
    for view, answer in zip(views, answers.tolist(), strict=True):
        expected = plain_answer(model, view, 8)
        assert answer[: len(expected)] == expected


# ── onnxruntime-genai ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "of_kind", [LLAMA, pytest.param(("gemma3_text", "genai"), marks=pytest.mark.slow)], indirect=True, ids=_name
)
def test_onnxruntime_genai_opens_the_folder_and_says_the_same(of_kind):
    import onnxruntime_genai

    graph = of_kind.open()
    model = onnxruntime_genai.Model(str(of_kind.folder))
    tokenizer = onnxruntime_genai.Tokenizer(model)
    for text in tiny_generate.texts(10):
        view = graph.encode(text)
        assert tokenizer.encode(text).tolist() == view
        parameters = onnxruntime_genai.GeneratorParams(model)
        parameters.set_search_options(max_length=len(view) + MAX_NEW_TOKENS)
        generator = onnxruntime_genai.Generator(model, parameters)
        generator.append_tokens(view)
        while not generator.is_done():
            generator.generate_next_token()
        answer = graph.generate(view, MAX_NEW_TOKENS)  # with the stop id that ended it, which genai leaves out
        said = answer[:-1] if answer[-1] in STOP_IDS else answer
        assert list(generator.get_sequence(0)[len(view) :]) == said


def test_genai_config_has_our_stop_ids_and_length():
    config = json.loads((exported(*LLAMA).folder / "genai_config.json").read_text(encoding="utf-8"))
    assert config["model"]["eos_token_id"] == STOP_IDS
    assert config["search"]["max_length"] == MAX_LENGTH
    assert config["model"]["context_length"] == MAX_LENGTH
    assert config["search"]["do_sample"] is False


LONGROPE = {"rope_type": "longrope", "type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8}
LONGROPE |= {"long_factor": [2.0] * 8, "original_max_position_embeddings": 512}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 512}


def _tables(folder: Path) -> list[list[int]]:
    """The shapes of the graph's rotary tables."""
    graph = onnx_ir.load(folder / "model.onnx").graph
    values = [*graph.initializers.values(), *(value for node in graph.all_nodes() for value in node.outputs)]
    stored = [v for v in values if v.is_initializer() or ((node := v.producer()) and node.op_type == "Constant")]
    return [list(v.shape.numpy()) for v in stored if "cos_cache" in v.name or "sin_cache" in v.name]


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("llama", {}),
        ("llama", {"rope_parameters": LLAMA3}),
        ("phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 512}),
        ("gemma3_text", {"sliding_window": 8}),
        ("gemma3_text", {"sliding_window": MAX_LENGTH - 1}),
        ("gemma3_text", {"sliding_window": MAX_LENGTH}),
        ("gemma3_text", {"sliding_window": 3000}),
        ("mistral", {"sliding_window": MAX_LENGTH}),
    ],
)
def test_rotary_tables_end_where_the_student_does(kind: str, config: dict[str, Any], tmp_path: Path) -> None:
    """Of a model for 2,048 tokens; and answers of any length up to that are PyTorch's, in both loops."""
    model = exported_generate.model(kind, "genai", max_position_embeddings=2048, **config)
    exported_generate.save(model, tmp_path / "source")
    exported_generate.export(model, "genai", tmp_path / "source", tmp_path)
    sidecar_files.copy(tmp_path / "source", tmp_path, ["input_ids", "attention_mask"], max_length=MAX_LENGTH)
    assert len(_tables(tmp_path)) in (2, 4)
    assert {rows for rows, _ in _tables(tmp_path)} == {MAX_LENGTH}
    own, genai = open_generator(tmp_path), GenaiDecoder(tmp_path)
    for length in (1, 5, 30, MAX_LENGTH - MAX_NEW_TOKENS):
        view = [5 + place % 30 for place in range(length)]
        expected = plain_answer(model, view)
        assert own.generate(view, MAX_NEW_TOKENS) == list(genai.stream(view, MAX_NEW_TOKENS)) == expected


def test_a_window_that_the_builder_leaves_out_is_traced_instead(tmp_path: Path) -> None:
    """All of Mistral's layers slide, and its config has no list of layers that says so."""
    model = exported_generate.model("mistral", "genai", sliding_window=MAX_LENGTH - 1)
    exported_generate.save(model, tmp_path / "source")
    with pytest.raises(genai_builder.UnsupportedByBuilder, match="leaves out the sliding window of 95 tokens"):
        exported_generate.export(model, "genai", tmp_path / "source", tmp_path)


def test_tables_in_a_models_own_buffers_are_cut_while_it_is_traced(tmp_path: Path) -> None:
    model = exported_generate.model("gptj", "trace", n_positions=512)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder, length in ((whole, None), (cut, MAX_LENGTH)):
        folder.mkdir()
        decoder_trace.export(model, folder, max_length=length)
        exported_generate.save(model, folder / "source")
        sidecar_files.copy(folder / "source", folder, ["input_ids", "attention_mask"], max_length=MAX_LENGTH)
    tables = 2 * (512 - MAX_LENGTH) * 8 * 4  # layers × rows × size × bytes, of one table at the least
    assert (cut / "model.onnx").stat().st_size < (whole / "model.onnx").stat().st_size - tables / 2
    for length in (1, MAX_LENGTH - MAX_NEW_TOKENS):
        view = [5 + place % 30 for place in range(length)]
        assert open_generator(cut).generate(view, MAX_NEW_TOKENS) == plain_answer(model, view)


@pytest.mark.slow
def test_gemmas_embeddings_are_scaled_exactly(tmp_path):
    """√32 is 5.657; the builder has two decimals."""
    model = exported_generate.model("gemma3_text", "genai", hidden_size=32)
    exported_generate.save(model, tmp_path / "source")
    exported_generate.export(model, "genai", tmp_path / "source", tmp_path)
    sidecar_files.copy(tmp_path / "source", tmp_path, ["input_ids", "attention_mask"], max_length=MAX_LENGTH)
    graph = open_generator(tmp_path)
    assert _check(model, graph, _rows(graph, 8)).max_logit_difference < 1e-5


def test_an_architecture_that_the_builder_does_not_know(tmp_path):
    exported_generate.save(exported_generate.model("gpt2", "genai"), tmp_path / "source")
    before = sys.path.copy()
    with pytest.raises(genai_builder.UnsupportedByBuilder, match="not currently supported") as caught:
        genai_builder.export(tmp_path / "source", tmp_path, STOP_IDS, MAX_LENGTH)
    assert (caught.value.exit_code, caught.value.next) == (5, "--set export.builder=trace")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    assert sys.path == before


# ── parity ───────────────────────────────────────────────────────────────────────────────────────


def _altered(folder: Path, target: Path, factor: float) -> Path:
    """The folder with one weight matrix of its graph scaled."""
    shutil.copytree(folder, target)
    path = target / "model.onnx"
    proto = onnx.load(path)
    weight = next(tensor for tensor in proto.graph.initializer if "1.mlp.down_proj" in tensor.name)
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(factor), weight.name))
    onnx.save(proto, path)
    return target


@pytest.mark.parametrize("factor", [-1, 1.01])
def test_a_graph_that_is_a_little_off_fails_and_the_row_is_named(tmp_path, factor):
    source = exported(*LLAMA)
    graph = open_generator(_altered(source.folder, tmp_path / "graph", factor))
    rows = _rows(graph, 8)
    with pytest.raises(GateFailed, match=r"of the largest one, 0\.0001 is allowed") as caught:
        _check(source.model, graph, rows)
    assert caught.value.exit_code == 6
    assert caught.value.where in {f"row {row}" for row in rows.ids}


class Wrong:
    """A graph that says another token than it should, at one place of one answer."""

    def __init__(self, graph, view: list[int], place: int, token: int) -> None:
        self._graph, self._view, self._place, self._token = graph, view, place, token

    def __getattr__(self, name):
        return getattr(self._graph, name)

    def generate(self, view, max_new_tokens):
        answer = self._graph.generate(view, max_new_tokens)
        if view == self._view:
            answer[self._place :] = [self._token]
        return answer


def test_another_token_is_an_error_unless_the_two_logits_tie():
    source = exported(*LLAMA)
    graph = source.open()
    rows = _rows(graph, 8)
    answer = graph.generate(rows.views[3], MAX_NEW_TOKENS)
    place = len(answer) - 1
    logits = graph.score(rows.views[3], answer)[place]
    second, first = np.argsort(logits)[-2:]
    wrong = Wrong(graph, rows.views[3], place, int(second))
    apart = float(logits[first] - logits[second]) / float(np.abs(logits).max())
    with pytest.raises(GateFailed, match=f"token {place + 1} of the answer differs") as caught:
        _check(source.model, wrong, rows, allowed=apart * 0.9)
    assert caught.value.where == "row row-3"
    found = _check(source.model, wrong, rows, allowed=apart * 1.1)
    assert (found.prompts, found.equal_prompts, found.ties) == (8, 7, 1)


def test_an_answer_that_ends_too_early_is_another_answer():
    source = exported(*LLAMA)
    graph = source.open()
    rows = _rows(graph, 8)
    view = next(view for view in rows.views if len(graph.generate(view, MAX_NEW_TOKENS)) > 3)
    with pytest.raises(GateFailed, match="token 2 of the answer differs"):
        _check(source.model, Wrong(graph, view, 1, tiny_generate.EOS_ID), rows)


def test_only_so_many_prompts_are_answered():
    source = exported(*LLAMA)
    graph = source.open()
    rows = _rows(graph, 8)
    wrong = Wrong(graph, rows.views[5], 0, 99)
    assert _check(source.model, wrong, rows, prompts=5).prompts == 5
    with pytest.raises(GateFailed):
        _check(source.model, wrong, rows, prompts=6)


def test_nan_is_no_agreement():
    source = exported(*LLAMA)
    graph = source.open()

    class Nan(Wrong):
        def score(self, view, response):
            return self._graph.score(view, response) * np.float32("nan")

    with pytest.raises(GateFailed, match="nan"):
        _check(source.model, Nan(graph, [], 0, 0), _rows(graph, 3))


def test_views_have_to_be_the_same_tokens_in_transformers():
    source = exported(*T5)
    tokenizer, graph, texts = AutoTokenizer.from_pretrained(source.source), source.open(), tiny_generate.texts(5)
    assert parity.views(graph, tokenizer, texts, texts) == tokenizer(texts).input_ids
    graph.tokenizer.enable_truncation(4)
    assert {len(view) for view in parity.views(graph, tokenizer, texts, texts)} <= {2, 3, 4}
    other = tiny_generate.bpe_tokenizer()  # without the end token
    with pytest.raises(GateFailed, match=r"tokenizer\.json gives 4 tokens"):
        parity.views(graph, other, texts, texts)


# ── the stage ────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module", params=[LLAMA, T5, pytest.param(SLOW[0], marks=pytest.mark.slow)], ids=_name)
def committed(request, tmp_path_factory):
    """A run directory after export; the tracing itself is `exported`'s."""
    kind, builder = request.param
    source = exported(kind, builder)
    space = exported_generate.workspace(tmp_path_factory.mktemp("run"), source.model)
    recipe = exported_generate.recipe(task={**exported_generate.recipe().task.model_dump(), "stop": ["river"]})
    recipe = recipe.model_copy(update={"export": recipe.export.model_copy(update={"builder": "trace"})})
    if builder == "genai":
        recipe = recipe.model_copy(update={"export": recipe.export.model_copy(update={"builder": "auto"})})

    def copied(model, folder, *_):
        for path in source.folder.glob("*.onnx"):
            shutil.copyfile(path, folder / path.name)
        return source.graph

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoder_trace, "export", copied)
        patch.setattr(seq2seq, "export", copied)
        outcome = export.run(recipe, space)
    exported_generate.tiny.commit(space, "export", outcome)
    return source, space, outcome


def test_the_stage_commits_the_whole_folder(committed):
    source, space, outcome = committed
    builder = outcome.facts.as_json()["builder"]
    files = {"README.md", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    files |= (
        {"drafts.json"}
        | {path.name for path in source.folder.glob("*.onnx")}
        | ({"genai_config.json"} if builder == "genai" else set())
    )
    assert {path.name for path in space.folder("export").iterdir()} == files | {"manifest.json"}
    assert set(space.manifest("export").outputs) == files
    facts = outcome.facts.as_json()
    assert facts["architecture"] == type(source.model).__name__
    assert facts["bytes"] == source.graph.bytes
    assert (facts["rows"], facts["prompts"], facts["equal_prompts"], facts["ties"]) == (12, 10, 10, 0)
    assert facts["max_logit_difference"] < 1e-5
    assert facts["opset"] >= 18


def test_the_folder_runs_as_its_card_says(committed, monkeypatch):
    """All Python code of the card: onnxruntime and tokenizers alone, and onnxruntime-genai."""
    _, space, outcome = committed
    monkeypatch.chdir(space.folder("export"))
    blocks = re.findall(r"```python\n(.*?)```", Path("README.md").read_text(encoding="utf-8"), re.S)
    assert len(blocks) == (2 if outcome.facts.as_json()["builder"] == "genai" else 1)
    graph = open_generator(space.folder("export"))
    compared = 0
    for text in tiny_generate.texts(12):
        answer = graph.generate(graph.encode(text), MAX_NEW_TOKENS)
        said = graph.decode(answer).split("river")[0].strip()
        plain, genai = _printed(blocks[0], text), "".join(_printed(block, text) for block in blocks[1:])
        assert plain == said + "\n"
        if genai:  # it decodes up to the first bytes that are no UTF-8, and leaves out the stop id
            ended = graph.decode(answer[:-1] if answer[-1] in STOP_IDS else answer).split("river")[0].strip()
            readable = ended.split("\ufffd")[0]
            assert genai.split("\ufffd")[0].strip() == readable.strip()
            compared += len(readable) > 2
    assert compared > 2 or len(blocks) == 1


def _printed(block: str, text: str) -> str:
    """What a card's code prints for ``text``."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(block.replace('"…"', repr(text)), {"text": text})
    return printed.getvalue()


def test_other_tools_load_the_folder(committed):
    _, space, _ = committed
    folder = space.folder("export")
    loaded, graph = AutoTokenizer.from_pretrained(folder), open_generator(folder)
    assert json.loads((folder / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert loaded.model_max_length == graph.max_length == MAX_LENGTH
    assert loaded("the old king").input_ids == graph.encode("the old king")


def test_the_card_quotes_no_row(committed):
    _, space, outcome = committed
    card = (space.folder("export") / "README.md").read_text(encoding="utf-8")
    assert not [text for text in tiny_generate.texts(12) if text.count(" ") > 2 and text in card]
    assert "| teacher | teacher | not stated |" in card
    assert ("ORTModelForSeq2SeqLM" in card) == (outcome.facts.as_json()["builder"] == "seq2seq")


def test_a_graph_that_is_wrong_commits_nothing(tmp_path, monkeypatch):
    source = exported(*LLAMA)
    space = exported_generate.workspace(tmp_path / "run", source.model)
    build = genai_builder.export

    def wrong(folder, target, *rest, **options):
        graph = build(folder, target, *rest, **options)
        altered = _altered(target, tmp_path / "altered", -1)
        shutil.copyfile(altered / "model.onnx", target / "model.onnx")
        return graph

    monkeypatch.setattr(genai_builder, "export", wrong)
    before = tree_digest(space.root)
    with pytest.raises(GateFailed, match="row"):
        export.run(exported_generate.recipe(), space)
    assert tree_digest(space.root) == before


@pytest.mark.slow
def test_auto_traces_what_the_builder_does_not_know_and_genai_insists(tmp_path):
    space = exported_generate.workspace(tmp_path / "run", exported_generate.model("gpt2", "trace"), rows=4)
    with pytest.raises(genai_builder.UnsupportedByBuilder):
        export.run(exported_generate.recipe(export={"builder": "genai"}), space)
    facts = export.run(exported_generate.recipe(), space).facts.as_json()
    assert (facts["builder"], facts["equal_prompts"]) == ("trace", 4)


@pytest.mark.slow
def test_an_opset_that_was_asked_for_is_the_tracers(tmp_path):
    space = exported_generate.workspace(tmp_path / "run", exported(*LLAMA).model, rows=4)
    built = exported(*LLAMA).graph.opset
    with pytest.raises(RecipeError, match=f"it wrote {built}"):
        export.run(exported_generate.recipe(export={"builder": "genai", "opset": built - 1}), space)
    facts = export.run(exported_generate.recipe(export={"opset": 18}), space).facts.as_json()
    assert (facts["builder"], facts["opset"]) == ("trace", 18)


def test_the_card_says_how_texts_look_to_the_last_newline(committed):
    _, space, outcome = committed
    recipe = exported_generate.recipe(
        contexts={"full": {"template": "{{ input }}"}, "simplified": {"template": "Q: {{ input }}\n"}}
    )
    facts = [space.facts("collect", DataFacts), space.facts("train", GenerateTrain)]
    views = view_table.read(space.folder("collect") / "views.parquet", "eval")
    reading = Reading.of(recipe, views, facts[1], space.folder("train") / "model")
    text = card.render(recipe, *facts, reading, [{"graph": "fp32"}], outcome.facts.as_json()["builder"])
    assert '"Q: {{ input }}\\n"' in text


def test_the_card_puts_in_front_what_genais_tokenizer_leaves_out(committed):
    _, space, _ = committed
    facts = [space.facts("collect", DataFacts), space.facts("train", GenerateTrain)]
    views = view_table.read(space.folder("collect") / "views.parquet", "eval")
    reading = Reading.of(exported_generate.recipe(), views, facts[1], space.folder("train") / "model")
    measured = [{"graph": "fp32"}]
    for begin, written in (([2], "ids = [2] + list(tokenizer."), ([], "ids = list(tokenizer.encode(view(text)))\n")):
        assert written in card.render(exported_generate.recipe(), *facts, reading, measured, "genai", begin)
