"""The teacher's answers: neither sharing the context nor the company a row has in its batch changes what it says."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from distillctl.data import responses
from distillctl.errors import RecipeError
from distillctl.recipe import Sampling
from distillctl.teachers import generation, response_scoring
from distillctl.teachers.generation import draw, generate
from distillctl.teachers.response_scoring import score
from distillctl.teachers.shared_context import SharedContext, common_prefix
from tests.fixtures import tiny_generate
from tests.teachers.test_shared_context import KINDS

pytestmark = pytest.mark.slow

STEPS = 28
"""More than the tiny models' sliding windows have left beside a view."""
STOP = list(range(0, 97, 9))


@pytest.fixture(scope="module", params=[*KINDS, "gpt2"])
def model(request):
    torch.manual_seed(1)
    sizes = KINDS.get(request.param) or {"n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": 97}
    longest = {"n_positions": 256} if request.param == "gpt2" else {"max_position_embeddings": 256}
    config = AutoConfig.for_model(
        request.param, initializer_range=0.3, tie_word_embeddings=False, eos_token_id=None, **longest, **sizes
    )
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture(scope="module")
def llama():
    return tiny_generate.decoder()


def _views(shared, count=9, seed=0):
    generator = np.random.default_rng(seed)
    context = generator.integers(11, 97, shared).tolist()
    return [context + generator.integers(11, 97, generator.integers(1, 14)).tolist() for _ in range(count)]


def _own(model, views):
    prefix = common_prefix(views)
    return SharedContext(model, views[0][:prefix]), [view[prefix:] for view in views]


def _all(log_probs, generator):
    return {"log_probs": log_probs.numpy()}


@torch.inference_mode()
def _reference(model, view, stop, steps):
    """One row alone, nothing cached: the whole sequence again for every token."""
    ids, log_probs = [], []
    while len(ids) < steps and (not ids or ids[-1] not in stop):
        found = model(input_ids=torch.tensor([view + ids])).logits[0, -1].double().log_softmax(-1)
        log_probs.append(found.numpy())
        ids.append(int(found.argmax()))
    return ids, np.stack(log_probs)


def _scores(model, views, given, **options):
    found = {}
    score(model, views, given, lambda i, log_probs: found.update({i: log_probs.numpy()}), **options)
    return [found[i] for i in range(len(views))]


@pytest.mark.parametrize("shared", [40, 5])
def test_shared_and_plain_answers_equal_those_of_each_row_alone(model, shared):
    views = _views(shared)
    expected = [_reference(model, view, STOP, STEPS) for view in views]
    assert len({len(ids) for ids, _ in expected}) > 2, "the rows have to end at different steps"
    context, own = _own(model, views)
    options = {"stop": STOP, "max_new_tokens": STEPS, "keep": _all}
    for batch_tokens in (1, 60, 2000):
        for found in (
            generate(model, views, batch_tokens=batch_tokens, **options),
            generate(model, own, batch_tokens=batch_tokens, context=context, **options),
        ):
            for (response,), (ids, log_probs) in zip(found, expected, strict=True):
                assert response.token_ids == ids
                np.testing.assert_allclose(response.labels["log_probs"], log_probs, atol=1e-4)
                assert response.cut == (ids[-1] not in STOP)


@pytest.mark.parametrize("shared", [40, 5])
def test_teacher_forcing_gives_the_distributions_of_generation(model, shared, monkeypatch):
    views = _views(shared)
    said = [ids for ids, _ in (_reference(model, view, STOP, STEPS) for view in views)]
    context, own = _own(model, views)
    expected = [r.labels["log_probs"] for (r,) in generate(
        model, views, stop=STOP, max_new_tokens=STEPS, batch_tokens=500, keep=_all)]  # fmt: skip
    for held in (response_scoring.AT_ONCE, 97 * 3):  # logits of three tokens at a time
        monkeypatch.setattr(response_scoring, "AT_ONCE", held)
        for batch_tokens in (1, 90, 2000):
            for found in (
                _scores(model, views, said, batch_tokens=batch_tokens),
                _scores(model, own, said, batch_tokens=batch_tokens, context=context),
            ):
                for one, other in zip(found, expected, strict=True):
                    np.testing.assert_allclose(one, other, atol=1e-4)


def test_a_shift_by_one_would_be_seen(llama):
    """The distributions of neighbouring places differ by far more than the laws here allow."""
    views = _views(20)
    said = [_reference(llama, view, [], 8)[0] for view in views]
    for ids, log_probs in zip(said, _scores(llama, views, said, batch_tokens=500), strict=True):
        assert log_probs.argmax(-1).tolist() == ids
        assert (abs(np.diff(log_probs, axis=0)).max(-1) > 0.5).all()


def test_greedy_answers_equal_transformers_own(llama):
    views = [[token % 290 + 2 for token in view] for view in _views(6)]
    found = generate(llama, views, stop=[tiny_generate.EOS_ID, 40, 41], max_new_tokens=12, batch_tokens=200)
    for view, (response,) in zip(views, found, strict=True):
        whole = llama.generate(
            torch.tensor([view]), do_sample=False, max_new_tokens=12, eos_token_id=[tiny_generate.EOS_ID, 40, 41]
        )
        assert response.token_ids == whole[0, len(view) :].tolist()


def test_a_stop_token_ends_a_response_and_is_part_of_it(llama):
    view = _views(5, count=1)
    free = generate(llama, view, stop=[], max_new_tokens=6, batch_tokens=50)[0][0]
    assert len(free.token_ids) == 6
    assert free.cut
    third = free.token_ids[2]
    ended = generate(llama, view, stop=[third], max_new_tokens=6, batch_tokens=50)[0][0]
    assert ended.token_ids == free.token_ids[: free.token_ids.index(third) + 1]
    assert not ended.cut
    last = generate(llama, view, stop=[free.token_ids[-1]], max_new_tokens=6, batch_tokens=50)[0][0]
    assert not last.cut, "a response that ends with its last allowed token is whole"


def test_responses_that_have_ended_leave_the_batch(llama):
    views = _views(10)
    widths = []
    hook = llama.register_forward_pre_hook(
        lambda module, args, options: widths.append(len(options["input_ids"])), with_kwargs=True
    )
    try:
        found = generate(llama, views, stop=STOP, max_new_tokens=STEPS, batch_tokens=2000)
    finally:
        hook.remove()
    lengths = [len(response.token_ids) for (response,) in found]
    assert widths == [sum(length > step for length in lengths) for step in range(max(lengths))]


def test_no_forward_pass_gives_more_logits_than_are_held(llama, monkeypatch):
    monkeypatch.setattr(generation, "AT_ONCE", 4 * 300)
    widths = []
    hook = llama.register_forward_hook(lambda module, args, out: widths.append(out.logits.shape[:-1].numel()))
    try:
        generate(llama, _views(10), stop=STOP, max_new_tokens=3, batch_tokens=2000)
        most = max(widths)
        sampled = Sampling(kind="sampling", n=2)
        generate(llama, _views(10), stop=STOP, max_new_tokens=3, batch_tokens=2000, sampling=sampled)
    finally:
        hook.remove()
    assert most == max(widths) == 4


def test_padded_vocabulary_is_never_said_and_has_no_probability(llama):
    views = _views(10, count=3)
    whole = generate(llama, views, stop=[], max_new_tokens=8, batch_tokens=500)
    limit = max(token for (response,) in whole for token in response.token_ids)
    found = generate(llama, views, stop=[], max_new_tokens=8, batch_tokens=500, vocabulary=limit, keep=_all)
    for (response,) in found:
        assert max(response.token_ids) < limit
        assert response.labels["log_probs"].shape == (8, limit)
        np.testing.assert_allclose(np.exp(response.labels["log_probs"]).sum(-1), 1, atol=1e-5)


# ── sampling ─────────────────────────────────────────────────────────────────────────────────────


def _draws(log_probs, generator):
    """One token drawn from each distribution, as a list of arrays of their own lengths."""
    drawn = torch.multinomial(log_probs.exp(), 1, generator=generator)
    return {"ids": [np.repeat(int(one), 1 + int(one) % 3) for one in drawn], "first": drawn[:, 0].numpy()}


def test_samples_depend_on_their_rows_seed_alone(llama, monkeypatch):
    monkeypatch.setattr(generation, "_HELD", 300 * 5)  # what is kept is taken five tokens at a time
    views = _views(30)
    context, own = _own(llama, views)
    seeds = list(range(100, 100 + len(views)))
    options = {"stop": STOP, "max_new_tokens": 12, "sampling": Sampling(kind="sampling", n=3), "keep": _draws}
    found = generate(llama, views, batch_tokens=500, seeds=seeds, **options)
    assert all(len(row) == 3 and len({tuple(r.token_ids) for r in row}) > 1 for row in found)
    alone = [
        generate(llama, [view], batch_tokens=500, seeds=[seed], **options)[0]
        for view, seed in zip(views, seeds, strict=True)
    ]
    shared = generate(llama, own, batch_tokens=90, context=context, seeds=seeds, **options)
    for one, other, third in zip(found, alone, shared, strict=True):
        for a, b, c in zip(one, other, third, strict=True):
            assert a.token_ids == b.token_ids == c.token_ids
            assert len(a.labels["ids"]) == len(a.labels["first"]) == len(a.token_ids)
            assert [x.tolist() for x in a.labels["ids"]] == [x.tolist() for x in b.labels["ids"]]
            np.testing.assert_array_equal(a.labels["first"], c.labels["first"])
    other = generate(llama, views, batch_tokens=500, seeds=[seed + 1 for seed in seeds], **options)
    assert [r.token_ids for row in other for r in row] != [r.token_ids for row in found for r in row]


def test_what_is_kept_does_not_change_what_is_said(llama):
    options = {"stop": [], "max_new_tokens": 9, "batch_tokens": 500, "sampling": Sampling(kind="sampling", n=2)}
    views = _views(10, count=3)
    bare, kept = generate(llama, views, **options), generate(llama, views, keep=_draws, **options)
    assert [r.token_ids for row in bare for r in row] == [r.token_ids for row in kept for r in row]


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
@pytest.mark.parametrize("top_p", [1.0, 0.6])
def test_draws_follow_the_tempered_nucleus(temperature, top_p):
    log_probs = torch.tensor([0.05, 0.4, 0.25, 0.2, 0.1]).log()
    spec = Sampling(kind="sampling", temperature=temperature, top_p=top_p)
    generator = torch.Generator().manual_seed(0)
    counts = np.bincount([draw(log_probs, spec, generator) for _ in range(6000)], minlength=5) / 6000
    tempered = (log_probs / temperature).softmax(-1).double().numpy()
    order = np.argsort(-tempered)
    nucleus = order[: int(np.searchsorted(tempered[order].cumsum(), top_p) + 1)]
    expected = np.zeros(5)
    expected[nucleus] = tempered[nucleus] / tempered[nucleus].sum()
    assert not counts[expected == 0].any()
    np.testing.assert_allclose(counts, expected, atol=0.03)


@given(st.integers(0, 999))
@settings(max_examples=30)
def test_impossible_tokens_are_never_drawn(seed):
    generator = torch.Generator().manual_seed(seed)
    log_probs = torch.randn(40, generator=generator)
    log_probs[torch.rand(40, generator=generator) < 0.7] = -torch.inf
    log_probs[seed % 40] = 0.0
    log_probs = log_probs.log_softmax(-1)
    for top_p in (1.0, 0.5, 1e-6):
        assert log_probs[draw(log_probs, Sampling(kind="sampling", top_p=top_p), generator)] > -torch.inf


# ── where a response ends ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        (" an answer\nQ: more", ["\n"], "an answer"),
        ("a | b; c", ["; ", " |"], "a"),
        ("whole ", [], "whole"),
        ("\nafter", ["\n"], ""),
    ],
)
def test_the_answers_text_ends_before_the_first_stop_string(text, stop, expected):
    assert responses.clean(text, stop) == expected


def test_every_token_with_a_stop_string_in_it_ends_a_response():
    tokenizer = tiny_generate.bpe_tokenizer(["a b\n\nc", "end.\n", "and the ; see"] * 9, 300)
    found = responses.stop_ids(tokenizer, [1], ["\n", " t"])
    texts = [tokenizer.decode([token]) for token in range(len(tokenizer))]
    assert found == sorted({1} | {i for i, text in enumerate(texts) if "\n" in text or " t" in text})
    assert any(text.startswith(" t") for text in (texts[i] for i in found))
    assert responses.stop_ids(tokenizer, [5, 1], []) == [1, 5]
    with pytest.raises(RecipeError, match=r"task.stop: no token of the tokenizer contains 'zebra crossing'"):
        responses.stop_ids(tokenizer, [1], ["zebra crossing"])
