"""Head and loss chunk by chunk: the values and gradients of the plain way, to the model's last parameter."""

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from distillctl.errors import RecipeError
from distillctl.losses.chunked_head import CHUNK_LOGITS, chunked, rows_at_once
from distillctl.losses.heads import Head, check_head, head_of, hidden_states
from distillctl.losses.targets import DenseTargets, TopKTargets
from distillctl.losses.token_loss import kl, token_loss
from distillctl.recipe import JSD, CrossEntropy, ForwardKL
from tests.fixtures import tiny_generate

TERMS = (ForwardKL(), JSD(weight=0.5, temperature=2.0), CrossEntropy(weight=0.1))
VIEW, RESPONSE = 4, 6
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def _model(kind):
    if kind in ("t5", "marian"):
        return tiny_generate.seq2seq(kind, vocabulary=50, tie_word_embeddings=kind == "t5")
    if kind in ("llama", "gemma3_text"):
        return tiny_generate.decoder(kind, vocabulary=50, tie_word_embeddings=kind == "llama")
    torch.manual_seed(0)
    if kind == "bart":
        config = AutoConfig.for_model(
            kind, vocab_size=50, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, pad_token_id=0, eos_token_id=1,
            forced_eos_token_id=None, decoder_start_token_id=0, bos_token_id=0,
        )  # fmt: skip
        return AutoModelForSeq2SeqLM.from_config(config).eval()
    attention = {} if kind == "gpt_neox" else {"num_key_value_heads": 2}
    special = {"eos_token_id": 1, "bos_token_id": 0, "pad_token_id": 0}
    config = AutoConfig.for_model(kind, vocab_size=50, initializer_range=0.3, **SIZES, **attention, **special)
    return AutoModelForCausalLM.from_config(config).eval()


def _inputs(model):
    """Two rows, the second shorter and padded on the right."""
    ids = torch.randint(2, 50, (2, VIEW + RESPONSE))
    mask = torch.ones_like(ids)
    mask[1, -2:] = 0
    if not model.config.is_encoder_decoder:
        return {"input_ids": ids, "attention_mask": mask}
    return {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": torch.randint(2, 50, (2, RESPONSE))}


def _targets(count, dtype=torch.float64):
    teacher = torch.randn(count, 50, dtype=dtype).mul(2).log_softmax(-1)
    head, ids = teacher.topk(7, -1)
    tail = teacher.scatter(-1, ids, -torch.inf).logsumexp(-1)
    return TopKTargets(torch.randint(50, (count,)), ids, head, tail, {2.0: (teacher / 2).logsumexp(-1)})


KINDS = ["llama", "gemma3_text", "t5", "marian", "bart", "gpt_neox", "qwen3", "mistral", "phi", "granite", "cohere"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_head_on_the_hidden_states_gives_the_models_logits(kind):
    model = _model(kind)
    inputs = _inputs(model)
    if kind in ("marian", "bart"):
        model.final_logits_bias.normal_()
    model.train()
    check_head(model, inputs)
    assert model.training
    model.eval()
    found = head_of(model)(hidden_states(model, inputs))
    torch.testing.assert_close(found, model(**inputs).logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("spoiled", ["scale", "softcap", "bias"])
def test_a_head_that_is_not_all_of_it_is_told(spoiled, monkeypatch):
    model = _model({"scale": "t5", "softcap": "gemma3_text", "bias": "marian"}[spoiled])
    if spoiled == "bias":
        model.final_logits_bias.normal_()
    whole = head_of(model)
    parts = {"weight": whole.weight, "bias": whole.bias, "scale": whole.scale, "softcap": whole.softcap}
    half = Head(**parts | {spoiled: 1.0 if spoiled == "scale" else None})
    monkeypatch.setattr("distillctl.losses.heads.head_of", lambda _: half)
    with pytest.raises(RecipeError, match="gives other logits") as told:
        check_head(model, _inputs(model))
    assert told.value.where == "student"


def test_a_model_without_a_linear_head_is_told():
    model = _model("llama")
    model.lm_head = nn.Sequential(model.lm_head)
    with pytest.raises(RecipeError, match="no linear head"):
        head_of(model)


def _gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("chunk", [1, 5, 12, 100])
@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "t5", "marian", "phi"])
def test_values_and_every_gradient_are_those_of_the_plain_way(kind, chunk):
    model = _model(kind).double()
    inputs = _inputs(model)
    if kind == "marian":
        model.final_logits_bias.normal_()
    # The last RESPONSE positions of each row; with one left out, so that no chunk but 1 divides their number.
    place = slice(VIEW - 1, -1) if not model.config.is_encoder_decoder else slice(None)
    targets = _targets(2 * RESPONSE - 1)
    logits = model(**inputs).logits[:, place].flatten(0, 1)[1:]
    plain = token_loss(TERMS, targets, logits)
    expected = _gradients(model, plain.sum() / 7)

    hidden = hidden_states(model, inputs)[:, place].flatten(0, 1)[1:]
    total, rows, best = chunked(
        hidden, head_of(model), lambda part, at: (token_loss(TERMS, targets.rows(at), part), part.argmax(-1)), chunk
    )
    found = _gradients(model, total / 7)
    torch.testing.assert_close(rows, plain.detach(), atol=1e-10, rtol=0)
    torch.testing.assert_close(total, plain.sum(), atol=1e-10, rtol=0)
    assert not rows.requires_grad
    assert torch.equal(best, logits.argmax(-1))
    assert found.keys() == expected.keys()
    assert any(gradient.abs().max() > 1e-3 for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-10, rtol=0, msg=name)


def test_labels_off_by_one_are_seen():
    # A teacher that is the student itself: KL is 0 exactly where the shift is right, and nowhere else.
    model = _model("llama")
    inputs = _inputs(model)
    with torch.no_grad():
        teacher = model(**inputs).logits[:1].log_softmax(-1)
        hidden = hidden_states(model, inputs)[:1]
    # Row 0: a view of VIEW tokens; logits VIEW − 1 … end − 1 predict the response.
    targets = DenseTargets(inputs["input_ids"][0, VIEW:], teacher[0, VIEW - 1 : -1])

    def found(start, end):
        return chunked(hidden[0, start:end], head_of(model), lambda logits, at: kl(targets.rows(at), logits), 4)[0]

    end = VIEW + RESPONSE
    assert found(VIEW - 1, end - 1).abs() < 1e-5
    assert found(VIEW, end) > 0.1
    assert found(VIEW - 2, end - 2) > 0.1


@pytest.mark.parametrize("frozen", ["hidden", "weight", "bias"])
def test_only_what_asks_for_a_gradient_gets_one(frozen):
    tensors = {
        "hidden": torch.randn(7, 8, dtype=torch.double),
        "weight": torch.randn(50, 8, dtype=torch.double),
        "bias": torch.randn(50, dtype=torch.double),
    }
    for name, tensor in tensors.items():
        tensor.requires_grad_(name != frozen)
    head, targets = Head(tensors["weight"], tensors["bias"], scale=0.5, softcap=3.0), _targets(7)
    total, _ = chunked(tensors["hidden"], head, lambda logits, at: token_loss(TERMS, targets.rows(at), logits), 3)
    found = torch.autograd.grad(total, [tensor for name, tensor in tensors.items() if name != frozen])
    plain = token_loss(TERMS, targets, head(tensors["hidden"])).sum()
    expected = torch.autograd.grad(plain, [tensor for name, tensor in tensors.items() if name != frozen])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=0)


def test_without_gradients_there_are_only_values():
    head, hidden, targets = Head(nn.Parameter(torch.randn(50, 8))), torch.randn(7, 8), _targets(7, torch.float32)
    with torch.no_grad():
        total, rows = chunked(hidden, head, lambda logits, at: kl(targets.rows(at), logits), 3)
    assert not total.requires_grad
    torch.testing.assert_close(rows, kl(targets, head(hidden)).detach())


def test_gone_backward_through_once():
    head, hidden, targets = Head(nn.Parameter(torch.randn(50, 8))), torch.randn(7, 8), _targets(7, torch.float32)
    total, _ = chunked(hidden, head, lambda logits, at: kl(targets.rows(at), logits), 3)
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="only one backward pass"):
        total.backward()


def test_never_more_rows_of_logits_than_a_chunk():
    seen = []
    head, hidden = Head(nn.Parameter(torch.randn(50, 8))), torch.randn(7, 8)

    def loss(logits, at):
        seen.append((len(logits), at.start, at.stop))
        return logits.logsumexp(-1)

    chunked(hidden, head, loss, 3)
    assert seen == [(3, 0, 3), (3, 3, 6), (1, 6, 7)]
    assert rows_at_once(151_936) * 151_936 <= CHUNK_LOGITS
    assert rows_at_once(2**40) == 16


def test_under_autocast_the_products_are_bf16_and_gradients_float32():
    weight, hidden, targets = nn.Parameter(torch.randn(50, 8)), torch.randn(7, 8), _targets(7, torch.float32)
    seen = []

    def loss(logits, at):
        seen.append((logits.dtype, torch.is_autocast_enabled("cpu")))
        return token_loss(TERMS, targets.rows(at), logits)

    hidden.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = chunked(hidden, Head(weight), loss, 3)
        plain = token_loss(TERMS, targets, Head(weight)(hidden)).sum()
    found = torch.autograd.grad(total, (hidden, weight))
    expected = torch.autograd.grad(plain, (hidden, weight))
    assert set(seen) == {(torch.bfloat16, False)}
    torch.testing.assert_close(total, plain, rtol=1e-3, atol=1e-3)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=0.05, atol=0.05)
