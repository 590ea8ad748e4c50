"""Graphs that write, run as an app runs them: greedy, one token at a time, up to a stop id."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from distillctl.errors import DataError
from distillctl.runtimes.drafts import Drafts
from distillctl.runtimes.onnx_decoder import OnnxDecoder
from distillctl.runtimes.onnx_generator import open_generator
from distillctl.runtimes.onnx_seq2seq import OnnxSeq2Seq
from tests.fixtures import tiny_generate
from tests.fixtures.exported_generate import MAX_LENGTH, MAX_NEW_TOKENS, STOP_IDS, exported, plain_answer

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

KINDS = [
    ("llama", "genai"),
    ("t5", "seq2seq"),
    pytest.param(("llama", "trace"), marks=pytest.mark.slow),
    pytest.param(("marian", "seq2seq"), marks=pytest.mark.slow),
]


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: "-".join(kind))
def of_kind(request):
    return exported(*request.param)


def _changed(folder: Path, target: Path, file: str, **values: object) -> Path:
    """A copy of the folder with some values of a JSON file replaced."""
    shutil.copytree(folder, target)
    document = json.loads((target / file).read_text(encoding="utf-8")) | values
    (target / file).write_text(json.dumps(document), encoding="utf-8")
    return target


def test_the_folder_decides_which_class_runs_it(of_kind):
    graph = open_generator(of_kind.folder)
    assert type(graph) is (OnnxSeq2Seq if of_kind.model.config.is_encoder_decoder else OnnxDecoder)
    assert graph.stop_ids == set(STOP_IDS)
    assert graph.max_length == MAX_LENGTH


def test_tokens_are_those_of_the_tokenizer_and_padding_is_never_added(of_kind):
    graph, text = of_kind.open(), "the café of a river"
    assert graph.encode(text) == Tokenizer.from_file(str(of_kind.source / "tokenizer.json")).encode(text).ids
    assert graph.decode(graph.encode(text)) == text


def test_a_view_is_cut_where_the_tokenizer_was_told_to_cut(tmp_path):
    folder = shutil.copytree(exported("llama", "genai").folder, tmp_path / "graph")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(3)
    tokenizer.save(str(folder / "tokenizer.json"))
    assert len(open_generator(folder).encode("the a river king book")) == 3


def test_an_answer_ends_with_its_first_stop_id_or_at_the_limit(of_kind):
    graph = of_kind.open()
    answers = [graph.generate(graph.encode(text), MAX_NEW_TOKENS) for text in tiny_generate.texts(50)]
    stopped = [answer for answer in answers if answer[-1] in STOP_IDS]
    assert stopped
    assert all(len(answer) == MAX_NEW_TOKENS for answer in answers if answer[-1] not in STOP_IDS)
    assert not [answer for answer in answers if set(answer[:-1]) & set(STOP_IDS)]


def test_one_stop_id_may_stand_alone(tmp_path):
    source = exported("llama", "genai")
    graph = source.open()
    view = graph.encode(tiny_generate.texts(1)[0])
    third = graph.generate(view, 8)[2]
    folder = _changed(source.folder, tmp_path / "graph", "generation_config.json", eos_token_id=third)
    answer = open_generator(folder).generate(view, 8)
    assert answer == graph.generate(view, 8)[: answer.index(third) + 1]


def test_a_stream_runs_no_step_that_is_not_asked_for(of_kind):
    graph = of_kind.open()
    view = graph.encode(tiny_generate.texts(1)[0])
    whole = graph.generate(view, 10)
    stream = graph.stream(view, 10)
    assert [next(stream), next(stream)] == whole[:2]
    stream.close()
    assert graph.generate(view, 10) == whole


def test_a_query_is_not_changed_by_those_before_it(of_kind):
    """Shared buffers keep what a longer query wrote."""
    texts = sorted(tiny_generate.texts(12), key=len)
    used, views = of_kind.open(), [of_kind.open().encode(text) for text in texts]
    order = [11, 0, 5, 1, 10, 2]
    assert [used.generate(views[i], 12) for i in order] == [of_kind.open().generate(views[i], 12) for i in order]


def test_scores_are_the_logits_that_the_greedy_answer_came_from(of_kind):
    graph = of_kind.open()
    for text in tiny_generate.texts(10):
        view = graph.encode(text)
        answer = graph.generate(view, MAX_NEW_TOKENS)
        logits = graph.score(view, answer)
        assert (logits.dtype, logits.shape) == (np.float32, (len(answer), tiny_generate.VOCABULARY))
        assert logits.argmax(-1).tolist() == answer


def test_scores_do_not_depend_on_the_response_tokens_that_come_after(of_kind):
    graph = of_kind.open()
    view, response = (graph.encode(text) for text in tiny_generate.texts(2))
    whole = graph.score(view, response)
    np.testing.assert_allclose(graph.score(view, response[:2]), whole[:2], atol=1e-5)
    np.testing.assert_allclose(graph.score(view, response[:1]), whole[:1], atol=1e-5)


def test_views_of_one_token(of_kind):
    graph = of_kind.open()
    for view in ([5], [40], [77]):
        assert graph.generate(view, 12) == plain_answer(of_kind.model, view, 12)


def test_right_and_wrong_guesses_leave_the_answer_as_it_is_without_any(of_kind):
    graph, plain, tried = of_kind.open(), of_kind.open(), set()
    plain.drafts = Drafts()
    for text in tiny_generate.texts(12):
        view = graph.encode(text)
        answer = graph.generate(view, MAX_NEW_TOKENS)
        assert answer == plain.generate(view, MAX_NEW_TOKENS) == plain_answer(of_kind.model, view)
        guessed = graph.drafts.after([], MAX_NEW_TOKENS)
        tried |= {guessed == answer[: len(guessed)], graph.drafts.runs(answer, MAX_NEW_TOKENS) < len(answer)}
    assert tried == {True, False}


@pytest.mark.slow
def test_queries_shorter_than_the_sliding_window_and_far_beyond_it():
    """Gemma 3, whose window is 8 tokens here, and one of whose layers has none."""
    source = exported("gemma3_text", "genai")
    for length, limit in ((1, 1), (1, 3), (3, 2), (8, 2), (40, 20)):
        view = [5 + place % 30 for place in range(length)]
        assert source.open().generate(view, limit) == plain_answer(source.model, view, limit)


def test_a_decoder_ends_where_its_positions_do(tmp_path):
    source = exported("llama", "genai")
    folder = _changed(source.folder, tmp_path / "graph", "tokenizer_config.json", model_max_length=10)
    folder = _changed(folder, tmp_path / "unstopped", "generation_config.json", eos_token_id=[])
    graph = open_generator(folder)
    assert len(graph.generate([5] * 4, 100)) == 6
    assert len(graph.generate([5] * 9, 100)) == 1
    with pytest.raises(DataError, match="the view has 10 tokens, the model takes 10"):
        graph.generate([5] * 10, 100)


def test_an_encoder_takes_views_up_to_its_length_and_the_answer_is_apart_from_it(tmp_path):
    source = exported("t5", "seq2seq")
    folder = _changed(source.folder, tmp_path / "graph", "tokenizer_config.json", model_max_length=10)
    folder = _changed(folder, tmp_path / "unstopped", "generation_config.json", eos_token_id=[])
    graph = open_generator(folder)
    assert len(graph.generate([5] * 10, 20)) == 20
    with pytest.raises(DataError, match="the view has 11 tokens, the model takes 10"):
        graph.generate([5] * 11, 20)


def test_bytes_of_keys_and_values():
    """2 layers of keys and values; 2 key heads of the decoder's 4, 4 and 4 of the encoder–decoder's; 16 floats each."""
    assert exported("llama", "genai").open().kv_bytes(10) == 2 * 2 * 2 * 16 * 4 * 10
    assert exported("t5", "seq2seq").open().kv_bytes(10) == 2 * 2 * 4 * 16 * 4 * 10


def test_an_app_needs_neither_torch_nor_transformers():
    folders = [str(exported(*kind).folder) for kind in (("llama", "genai"), ("t5", "seq2seq"))]
    code = """
import sys
from pathlib import Path
from distillctl.runtimes.onnx_generator import open_generator
for folder in sys.argv[1:]:
    graph = open_generator(Path(folder))
    assert graph.generate(graph.encode("the river"), 5)
print(sorted({"torch", "transformers", "onnx"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code, *folders], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
