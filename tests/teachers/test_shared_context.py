"""The teacher's scores: sharing the context changes nothing, whatever the labels, lengths and kind of attention."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from distillctl.data import batching
from distillctl.data.answer_place import AnswerPlace
from distillctl.errors import RecipeError, UnavailableError
from distillctl.models import gguf
from distillctl.models.model_source import ModelSource
from distillctl.recipe import HuggingFaceTeacher
from distillctl.teachers import huggingface, label_scoring, shared_context
from distillctl.teachers.exclusive import exclusive
from distillctl.teachers.shared_context import (
    BatchKeyValues,
    SharedContext,
    UnsupportedAttention,
    attention,
    common_prefix,
    plain_attention,
)
from tests.fixtures import tiny

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 97}
KINDS = {
    "llama": {**SIZES, "num_key_value_heads": 2},
    "qwen3": {**SIZES, "num_key_value_heads": 1, "head_dim": 8},
    "gpt_neox": SIZES,
    "gemma3_text": {**SIZES, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 24,
                    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "mistral": {**SIZES, "num_key_value_heads": 2, "sliding_window": 20},
}  # fmt: skip
ANSWERS = [[3], [4, 5], [4, 6], [4], [7, 8, 9], [7, 8, 10]]


@pytest.fixture(scope="module", params=list(KINDS))
def model(request):
    torch.manual_seed(1)
    config = AutoConfig.for_model(
        request.param, initializer_range=0.2, max_position_embeddings=256, **KINDS[request.param]
    )
    return AutoModelForCausalLM.from_config(config).eval()


def _views(count, shared, seed=0):
    generator = np.random.default_rng(seed)
    context = generator.integers(11, 97, shared).tolist()
    return [context + generator.integers(11, 97, generator.integers(1, 12)).tolist() for _ in range(count)]


def _plain(model, views):
    """log Pr(answer | view) by one forward pass per answer, nothing batched, nothing shared."""
    out = np.empty((len(views), len(ANSWERS)))
    with torch.inference_mode():
        for (row, view), (k, answer) in itertools.product(enumerate(views), enumerate(ANSWERS)):
            logits = model(input_ids=torch.tensor([view + answer])).logits[0].double().log_softmax(-1)
            out[row, k] = sum(logits[len(view) - 1 + step, token] for step, token in enumerate(answer))
    return out


@pytest.mark.parametrize("shared", [40, 5])
def test_batched_and_shared_scores_equal_the_plain_forward(model, shared):
    views = _views(9, shared)
    expected = _plain(model, views)
    batched = label_scoring.score(model, views, [ANSWERS] * len(views), batch_tokens=150)
    expected = exclusive(expected, ANSWERS)
    np.testing.assert_allclose(batched.log_probs, expected, atol=1e-4)
    np.testing.assert_allclose(batched.mass, np.exp(expected).sum(-1), rtol=1e-3)
    prefix = common_prefix(views)
    context = SharedContext(model, views[0][:prefix])
    for batch_tokens in (1, 40, 1000):
        own = [view[prefix:] for view in views]
        found = label_scoring.score(model, own, [ANSWERS] * len(own), batch_tokens=batch_tokens, context=context)
        np.testing.assert_allclose(found.log_probs, expected, atol=1e-4)


def test_the_model_is_left_as_it_was(model):
    before = model.config._attn_implementation
    context = SharedContext(model, [11] * 20)
    with pytest.raises(ZeroDivisionError), context.attached():
        raise ZeroDivisionError
    assert model.config._attn_implementation == before


@pytest.mark.parametrize("kind", ["mistral", "gemma3_text"])
@pytest.mark.parametrize("shared", [20, 3])
def test_a_row_longer_than_the_sliding_window_sees_what_the_window_shows(kind, shared):
    torch.manual_seed(0)
    sizes = {**KINDS[kind], "sliding_window": 6}
    config = AutoConfig.for_model(kind, initializer_range=0.2, max_position_embeddings=256, **sizes)
    model = AutoModelForCausalLM.from_config(config).eval()
    views = [view + [12] * (row % 3) * 4 for row, view in enumerate(_views(9, shared))]
    prefix = common_prefix(views)
    assert max(map(len, views)) - prefix > 6
    context = SharedContext(model, views[0][:prefix])
    own = [view[prefix:] for view in views]
    found = label_scoring.score(model, own, [ANSWERS] * len(own), batch_tokens=64, context=context)
    np.testing.assert_allclose(found.log_probs, exclusive(_plain(model, views), ANSWERS), atol=1e-4)


def test_attention_that_the_split_does_not_know_is_refused_not_guessed(model):
    context = SharedContext(model, [11] * 20)
    with pytest.raises(UnsupportedAttention, match="softcap"), context.attached():
        context._attend(model, torch.zeros(1, 4, 2, 8), *[torch.zeros(1, 4, 2, 8)] * 2, None, softcap=30.0)


@given(st.integers(0, 99), st.booleans(), st.booleans())
def test_fused_and_elementary_attention_agree(seed, causal, masked):
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (torch.randn(2, 3, 7, 8, generator=generator) for _ in range(3))
    mask = torch.ones(7, 7, dtype=torch.bool).triu(-2) if masked and not causal else None
    fused, fused_mass = attention(query, key, value, scale=0.4, mask=mask, causal=causal)
    plain, plain_mass = plain_attention(query, key, value, scale=0.4, mask=mask, causal=causal)
    torch.testing.assert_close(fused, plain, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(fused_mass, plain_mass, atol=1e-5, rtol=1e-4)


answers = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4).map(tuple), min_size=1, max_size=8, unique=True)


@given(answers)
def test_every_answer_is_read_from_exactly_the_stems_it_runs_along(found):
    stems = label_scoring.distinct_stems(found)
    for answer in found:
        assert any(stem[: len(answer) - 1] == answer[:-1] for stem in stems)
    for a, b in itertools.permutations(stems, 2):
        assert b[: len(a)] != a


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=6))
def test_common_prefix_is_common_and_leaves_every_view_something(views):
    length = common_prefix(views)
    assert all(view[:length] == views[0][:length] and len(view) > length for view in views)


def _teacher(tmp_path, **spec):
    folder = tmp_path / "teacher"
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama", max_position_embeddings=64, initializer_range=0.5, **{**KINDS["llama"], "vocab_size": tiny.VOCABULARY}
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return huggingface.load(HuggingFaceTeacher(model="teacher", **spec), ModelSource("teacher", folder))


def test_a_loaded_teacher_knows_its_limits_and_its_words(tmp_path):
    teacher = _teacher(tmp_path)
    assert teacher.max_length == 64
    assert teacher.label_tokens("the king", ["who wrote", "where"], AnswerPlace()).answers == ((4, 5), (6,))
    with pytest.raises(RecipeError, match=r"task.labels: the teacher's tokenizer cannot write 'zebra'"):
        teacher.label_tokens("the king", ["who", "zebra"], AnswerPlace())


def test_sharing_that_changes_the_numbers_is_not_used(tmp_path, monkeypatch, capsys):
    teacher = _teacher(tmp_path)
    views = _views(3, 20)
    views = [[token % tiny.VOCABULARY for token in view] for view in views]
    answers = [[[3], [4]]] * 2
    assert teacher.prepare(views, answers, 20) is not None
    monkeypatch.setattr(SharedContext, "positions", lambda self, rows, length: torch.arange(length).expand(rows, -1))
    assert teacher.prepare(views, answers, 20) is None
    assert "computed again for every row" in capsys.readouterr().err


def test_sharing_that_changes_what_is_said_is_not_used(tmp_path, monkeypatch, capsys):
    teacher = _teacher(tmp_path)
    views = [[token % tiny.VOCABULARY for token in view] for view in _views(3, 20)]
    assert teacher.prepare_to_answer(views, 20, 10) is not None
    assert teacher.prepare_to_answer(views, 15, 10) is None, "too short to pay"
    grow = BatchKeyValues.grow
    for spoil in (
        lambda: monkeypatch.setattr(
            SharedContext, "positions", lambda self, rows, length: torch.arange(length).expand(rows, -1)
        ),
        lambda: monkeypatch.setattr(
            BatchKeyValues, "grow", lambda rows: (grow(rows), setattr(rows, "positions", rows.positions - 1))
        ),
    ):
        spoil()
        assert teacher.prepare_to_answer(views, 20, 10) is None
        told = " ".join(capsys.readouterr().err.split())
        assert "computed again for every row: sharing it changes log-probabilities" in told
        monkeypatch.undo()
    monkeypatch.setattr(shared_context, "_PLAIN", set())
    assert teacher.prepare_to_answer(views, 20, 10) is None
    assert "computed again for every row: attention takes" in " ".join(capsys.readouterr().err.split())


def test_answers_end_where_the_model_or_the_recipe_says(tmp_path):
    teacher = _teacher(tmp_path)
    assert teacher.vocabulary == tiny.VOCABULARY
    teacher.model.generation_config.eos_token_id = [7, 9]
    assert teacher.stop_ids([]) == [7, 9]
    teacher.tokenizer.eos_token = "[SEP]"
    assert teacher.stop_ids([]) == [3, 7, 9]
    teacher.model.generation_config.eos_token_id = None
    assert teacher.stop_ids(["king"]) == sorted([3, *teacher.tokenizer("king", add_special_tokens=False).input_ids])


def test_pickled_weights_are_not_loaded(tmp_path):
    folder = tmp_path / "teacher"
    _teacher(tmp_path)
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UnavailableError, match=r"teacher.model: the teacher teacher cannot be loaded"):
        huggingface.load(HuggingFaceTeacher(model="teacher"), ModelSource("teacher", folder))


def test_what_is_called_gguf_must_be_gguf(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"oops")
    with pytest.raises(UnavailableError, match="not a GGUF file"):
        gguf.dequantized(tmp_path / "x.gguf")


def test_lengths_in_one_batch_are_alike():
    assert batching.by_length([5, 1, 5, 1], max_rows=9, max_tokens=10) == [[1, 3], [0, 2]]
