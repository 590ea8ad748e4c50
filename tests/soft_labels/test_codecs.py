"""Laws of what is kept of a distribution: nothing is lost that the loss needs, and what is drawn has no bias."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distillctl.losses.token_loss import kl, token_loss
from distillctl.recipe import (
    JSD,
    TVD,
    CrossEntropy,
    Dense,
    EvalSoftLabels,
    ForwardKL,
    ReverseKL,
    Sampled,
    Text,
    TopK,
    implementation,
)
from distillctl.soft_labels.columns import short

ROUNDING = 2.0**-11


@st.composite
def distributions(draw, least=2):
    """Log-probabilities float32 [T, V] of any sharpness; at some positions some tokens cannot come."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    rows, size = draw(st.integers(1, 5)), draw(st.integers(least, 40))
    logits = torch.randn(rows, size, generator=generator) * draw(st.sampled_from([0.01, 1.0, 5.0, 30.0]))
    if draw(st.booleans()):
        impossible = torch.rand(rows, size, generator=generator) < draw(st.sampled_from([0.2, 0.9]))
        impossible[:, 0] = False
        logits = logits.masked_fill(impossible, -torch.inf)
    return logits.log_softmax(-1)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def kept(spec, log_probs, seed=0):
    """The profile, and one row's labels as the store gives them."""
    profile = implementation(spec)(spec)
    labels = profile.keep(log_probs, generator(seed))
    assert list(labels) == [field.name for field in profile.fields]
    assert all(len(column) == len(log_probs) for column in labels.values())
    return profile, {name: [column] for name, column in labels.items()}


def targets(spec, log_probs, remap=None, seed=0):
    profile, labels = kept(spec, log_probs, seed)
    token_ids = np.arange(len(log_probs)) % log_probs.shape[-1]
    return profile.targets(labels, [token_ids], remap)


def whole(ids, values, size, fill):
    """Values [N, k] at their ids in [N, size]."""
    out = torch.full((len(ids), size + 1), fill)
    return out.scatter(-1, ids.where(ids >= 0, size), values)[:, :-1]


# ── rounding ─────────────────────────────────────────────────────────────────────────────────────


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1))
def test_short_floats_are_within_their_bound_and_have_zero_low_bits(values):
    values = np.array(values, np.float32)
    values = values[(values == 0) | (abs(values) > 1e-30)]
    found = short(values)
    assert (abs(found.astype(np.float64) - values) <= ROUNDING * abs(values.astype(np.float64))).all()
    assert not (found.view(np.uint32) & 0x1FFF).any()
    np.testing.assert_array_equal(short(found), found)


def test_short_floats_keep_minus_infinity_and_round_half_to_even():
    assert short(np.array([-np.inf], np.float32))[0] == -np.inf
    step = 2.0**-10
    np.testing.assert_array_equal(
        short(np.array([1 + step / 2, 1 + 3 * step / 2], np.float32)), np.array([1, 1 + 2 * step], np.float32)
    )


# ── top_k ────────────────────────────────────────────────────────────────────────────────────────


@given(distributions(), st.integers(1, 50))
def test_top_k_head_and_tail_make_one_and_the_head_is_the_likeliest(log_probs, k):
    found = targets(TopK(k=k), log_probs)
    total = found.log_probs.exp().sum(-1) + found.log_tail.exp()
    torch.testing.assert_close(total, torch.ones(len(log_probs)), atol=1e-6, rtol=0)
    head = whole(found.ids, found.log_probs, log_probs.shape[-1], -torch.inf)
    there = ~head.isneginf()
    finite = ~log_probs.isneginf()
    torch.testing.assert_close(there.sum(-1), finite.sum(-1).clamp_max(k))
    assert not (there & ~finite).any()
    left = log_probs.masked_fill(there, -torch.inf).amax(-1)
    assert (log_probs.masked_fill(~there, torch.inf).amin(-1) >= left).all()
    assert ((found.ids < 0) == found.log_probs.isneginf()).all()
    assert (found.log_probs.diff(dim=-1).nan_to_num(0, neginf=-1) <= 0).all()


@given(distributions(), st.integers(1, 50))
def test_top_k_rounding_costs_a_bounded_sliver_of_kl(log_probs, k):
    found = targets(TopK(k=k), log_probs)
    true = log_probs.double()
    head = true.gather(-1, found.ids.clamp_min(0)).masked_fill(found.ids < 0, -torch.inf)
    tail = true.scatter(-1, found.ids.where(found.ids >= 0, found.ids[:, :1]), -torch.inf).logsumexp(-1)
    p = torch.cat([head, tail[:, None]], -1)
    kept_p = torch.cat([found.log_probs, found.log_tail[:, None]], -1).double()
    possible = p.exp() > 0
    kl = torch.where(possible, p.exp() * (p - kept_p), 0).nan_to_num(0).sum(-1)
    squares = torch.where(possible, p.exp() * p**2, 0).sum(-1)
    # Beyond the rounding: float32 sums of the test's own distributions.
    assert (kl <= ROUNDING**2 * squares + 5e-7).all()
    assert (kl >= -5e-7).all()


@given(distributions())
def test_top_k_of_the_whole_vocabulary_is_dense(log_probs):
    found = targets(TopK(k=log_probs.shape[-1] + 3), log_probs)
    dense = targets(Dense(), log_probs)
    assert found.log_tail.isneginf().all()
    head = whole(found.ids, found.log_probs, log_probs.shape[-1], -torch.inf)
    torch.testing.assert_close(head, dense.log_probs, rtol=2 * ROUNDING, atol=1e-3)
    torch.testing.assert_close(dense.log_probs, log_probs, rtol=0, atol=0)


@given(distributions(), st.integers(1, 50), st.sampled_from([0.5, 2.0, 7.0]))
def test_top_k_keeps_the_sum_that_re_tempering_needs(log_probs, k, temperature):
    found = targets(TopK(k=k, temperatures=(1.0, temperature)), log_probs)
    assert list(found.log_sums) == [temperature]
    expected = (log_probs / temperature).logsumexp(-1)
    torch.testing.assert_close(found.log_sums[temperature], expected, rtol=2 * ROUNDING, atol=2e-3)
    head = found.log_probs / temperature
    assert (head.logsumexp(-1) <= found.log_sums[temperature] + 1e-5).all()  # never a tail below nothing
    probability = (log_probs / temperature).softmax(-1).gather(-1, found.ids.clamp_min(0))
    torch.testing.assert_close(
        (head - found.log_sums[temperature][:, None]).exp(), probability.where(found.ids >= 0, 0), rtol=0.05, atol=2e-3
    )


@given(distributions(least=4), st.integers(1, 50), st.sampled_from([0, 9]), st.integers(0, 2**32 - 1))
def test_top_k_is_normalised_again_over_what_the_student_has(log_probs, k, draws, seed):
    remap = trimmed(log_probs.shape[-1], seed)
    spec = TopK(k=k, temperatures=(2.0,), tail_draws=draws)
    before, after = targets(spec, log_probs), targets(spec, log_probs, remap)
    assert_remapped(before.ids, after.ids, remap)
    some = ~after.log_tail.isneginf() | (after.ids >= 0).any(-1)
    total = after.log_probs.exp().sum(-1) + after.log_tail.exp()
    torch.testing.assert_close(total[some], torch.ones(int(some.sum())), atol=1e-5, rtol=0)
    stay = after.ids >= 0
    told = stay & (after.dropped < 1 - 1e-4)[:, None]  # nearer to 1, float32 has no digits left for what stays
    shift = (after.log_probs - before.log_probs).where(told, torch.nan)  # the same for all that stay at a position
    torch.testing.assert_close(shift, (-torch.log1p(-after.dropped))[:, None].where(told, torch.nan),
                               atol=1e-4, rtol=1e-3, equal_nan=True)  # fmt: skip
    assert after.log_probs[~stay].isneginf().all()
    assert ((after.log_probs / 2).logsumexp(-1) <= after.log_sums[2.0] + 1e-5)[some].all()


@given(distributions(), st.integers(1, 20), st.integers(1, 60))
def test_tail_draws_are_of_the_tail_alone_and_as_many_as_it_has_mass(log_probs, k, draws):
    found = targets(TopK(k=k, tail_draws=draws), log_probs)
    counts = whole_counts(found.drawn.ids, log_probs.shape[-1])
    assert not counts.gather(-1, found.ids.clamp_min(0))[found.ids >= 0].any()
    tail = log_probs.exp().scatter(-1, found.ids.where(found.ids >= 0, found.ids[:, :1]), 0)
    assert ((counts - draws * tail).abs() < 2 + 1e-4).all()
    assert not counts[tail == 0].any()
    torch.testing.assert_close(found.drawn.weights.sum(-1), counts.sum(-1) / draws)
    drawn = found.drawn.ids >= 0
    expected = log_probs.gather(-1, found.drawn.ids.clamp_min(0))[drawn]
    torch.testing.assert_close(found.drawn.log_probs[drawn], expected, rtol=2 * ROUNDING, atol=2e-3)


def whole_counts(ids, size):
    """How often each id stands in [N, m], [N, size]."""
    return torch.zeros(len(ids), size + 1).scatter_add(-1, ids.where(ids >= 0, size), torch.ones(ids.shape))[:, :-1]


def test_with_tail_draws_the_kl_is_the_whole_one_on_average_and_without_it_misses_the_tail():
    p = torch.tensor([0.4, 0.25, 0.12, 0.1, 0.06, 0.04, 0.03]).log()
    logits = torch.tensor([[0.5, 0.2, 1.0, -1.0, 0.3, 2.0, -2.0]])
    exact = kl(targets(Dense(), p[None]), logits).item()
    positions = 20_000
    found = targets(TopK(k=2, tail_draws=5), p.expand(positions, -1))
    each = kl(found, logits.expand(positions, -1))
    assert each.std() > 0.01
    assert each.mean().item() == pytest.approx(exact, abs=4.5 * each.std().item() / positions**0.5 + 1e-3)
    assert kl(targets(TopK(k=2, tail_draws=0), p[None]), logits).item() < 0.8 * exact


def test_the_gradient_with_tail_draws_is_the_whole_kls_on_average():
    p = torch.tensor([0.4, 0.25, 0.12, 0.1, 0.06, 0.04, 0.03]).log()
    start = torch.tensor([0.5, 0.2, 1.0, -1.0, 0.3, 2.0, -2.0]).double()

    def gradient(found):
        logits = start.expand(len(found), -1).clone().requires_grad_()
        (kl(found, logits).sum() / len(found)).backward()
        return logits.grad.sum(0)

    expected = gradient(targets(Dense(), p[None]))
    found = gradient(targets(TopK(k=2, tail_draws=5), p.expand(20_000, -1)))
    torch.testing.assert_close(found, expected, atol=5e-3, rtol=0)
    lumped = gradient(targets(TopK(k=2, tail_draws=0), p[None]))
    assert (lumped - expected).abs().max() > 0.05


def test_tail_draws_serve_only_the_forward_kl_at_temperature_1():
    log_probs = (torch.randn(6, 20, generator=generator()) * 2).log_softmax(-1)
    logits = torch.randn(6, 20, generator=generator(1))
    with_draws, lumped = (targets(TopK(k=4, temperatures=(2.0,), tail_draws=n), log_probs) for n in (30, 0))
    for term in (ReverseKL(), JSD(), TVD(), CrossEntropy(), ForwardKL(temperature=2.0)):
        found, expected = (token_loss((term,), each, logits) for each in (with_draws, lumped))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (
        token_loss((ForwardKL(),), with_draws, logits) - token_loss((ForwardKL(),), lumped, logits)
    ).abs().max() > 0.05


def test_captured_mass_is_the_heads():
    log_probs = torch.tensor([[0.5, 0.25, 0.125, 0.125], [0.97, 0.01, 0.01, 0.01]]).log()
    profile, labels = kept(TopK(k=2), log_probs)
    np.testing.assert_allclose(profile.captured_mass(labels), [0.75, 0.98], atol=1e-3)
    assert profile.entropy(labels) is None
    profile, labels = kept(TopK(k=4), log_probs)
    np.testing.assert_array_equal(profile.captured_mass(labels), [1, 1])


# ── sampled ──────────────────────────────────────────────────────────────────────────────────────


@given(distributions(), st.integers(1, 60))
def test_sampled_weights_are_shares_of_the_draws(log_probs, draws):
    found = targets(Sampled(draws=draws), log_probs)
    torch.testing.assert_close(found.weights.sum(-1), torch.ones(len(log_probs)), atol=1e-6, rtol=0)
    counts = found.weights.double() * draws
    torch.testing.assert_close(counts, counts.round(), atol=1e-5, rtol=0)
    assert ((found.ids >= 0) == (found.weights > 0)).all()
    for row, ids in enumerate(found.ids):
        drawn = ids[ids >= 0]
        assert len(drawn.unique()) == len(drawn)
        assert not log_probs[row, drawn].isneginf().any()
    assert (found.weights.diff(dim=-1) <= 0).all()


@given(distributions(), st.sampled_from([0.3, 0.8, 1.0]))
def test_entropy_is_exact_but_for_its_rounding(log_probs, exponent):
    profile, labels = kept(Sampled(draws=3, exponent=exponent), log_probs)
    p = log_probs.double().exp()
    expected = -(p * log_probs.double().masked_fill(p == 0, 0)).sum(-1).numpy()
    np.testing.assert_allclose(profile.entropy(labels), expected, rtol=ROUNDING, atol=1e-5)
    dense, whole_labels = kept(Dense(), log_probs)
    np.testing.assert_allclose(dense.entropy(whole_labels), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("draws", "exponent"), [(1, 1.0), (1, 0.5), (2, 1.0), (2, 0.5), (50, 0.25)])
def test_sampled_weights_have_the_teachers_distribution_as_their_mean(draws, exponent):
    """Against P²(1−R)/(RN), a weight's variance with independent draws: with stratified ones it is that at most.
    The seed is fixed; self-normalised weights miss by far."""
    positions = 20_000
    p = torch.tensor([0.7, 0.2, 0.06, 0.03, 0.01, 0.0])
    found = targets(Sampled(draws=draws, exponent=exponent), p.log().expand(positions, -1))
    means = whole(found.ids, found.weights, 6, 0.0).double().mean(0)
    r = p.double() ** exponent * (p > 0)
    r = r / r.sum()
    deviation = (p**2 * (1 - r) / (r * draws) / positions).nan_to_num(0).sqrt()
    assert ((means - p).abs() <= 4.5 * deviation + 2 * ROUNDING / 64).all()
    assert means[-1] == 0


def test_self_normalised_weights_would_fail_that_test():
    found = targets(Sampled(draws=1, exponent=0.5), torch.tensor([0.7, 0.2, 0.06, 0.03, 0.01]).log().expand(20_000, -1))
    biased = found.weights / found.weights.sum(-1, keepdim=True)
    assert abs(whole(found.ids, biased, 5, 0.0).mean(0)[0] - 0.7) > 0.03


def test_weights_are_not_self_normalised_below_exponent_1():
    found = targets(Sampled(draws=4, exponent=0.5), torch.tensor([0.7, 0.2, 0.06, 0.03, 0.01]).log().expand(100, -1))
    assert (found.weights.sum(-1) - 1).abs().max() > 0.1


def test_unlikely_tokens_of_a_large_vocabulary_are_drawn_as_often_as_they_should():
    """A running sum in float32 would have steps of 6e-8 where each of these tokens has 8e-8."""
    size, rare = 2**18, 2e-2
    p = torch.full((size,), rare / (size - 1), dtype=torch.float64)
    p[0] = 1 - rare
    found = targets(Sampled(draws=20_000), p.log().float().expand(20, -1))
    drawn = found.ids[found.ids > 0]
    expected = 20 * 20_000 * rare
    assert abs(found.weights[found.ids > 0].sum() * 20_000 - expected) < 5 * math.sqrt(expected)
    quarters = torch.bincount(drawn * 4 // size, minlength=4).double()
    assert (quarters - expected / 4).abs().max() < 5 * math.sqrt(expected / 4)
    assert drawn.max() > 2**17
    assert abs((drawn % 2).double().mean() - 0.5) < 5 * 0.5 / math.sqrt(len(drawn))


def test_draws_are_spread_over_the_mass_one_in_each_share():
    """Independent draws would be off by √(p(1−p)N): by 5 of 50 where p is a half."""
    log_probs = (torch.randn(400, 30, generator=torch.Generator().manual_seed(0)) * 3).log_softmax(-1)
    found = targets(Sampled(draws=50), log_probs)
    counts = torch.zeros(400, 31).scatter(-1, found.ids.where(found.ids >= 0, 30), found.weights * 50)[:, :30]
    assert (counts - 50 * log_probs.exp()).abs().max() < 2
    assert (counts.sum(-1) - 50).abs().max() < 1e-4


def test_draws_are_the_generators():
    log_probs = torch.randn(20, 30, generator=generator(1)).log_softmax(-1)
    same, again, other = (targets(Sampled(draws=5), log_probs, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(same.ids, again.ids)
    assert torch.equal(same.weights, again.weights)
    assert same.ids.tolist() != other.ids.tolist()


# ── dense, text ──────────────────────────────────────────────────────────────────────────────────


@given(distributions(least=4), st.integers(0, 2**32 - 1))
def test_dense_is_normalised_again_over_what_the_student_has(log_probs, seed):
    remap = trimmed(log_probs.shape[-1], seed, keep=(0,))
    after = targets(Dense(), log_probs, remap)
    old = np.flatnonzero(remap >= 0)
    expected = torch.full_like(after.log_probs, -torch.inf)
    expected[:, remap[old]] = log_probs[:, old].log_softmax(-1)
    torch.testing.assert_close(after.log_probs, expected)


@given(distributions(least=4), st.integers(0, 2**32 - 1))
def test_the_response_tokens_are_the_students(log_probs, seed):
    remap = trimmed(log_probs.shape[-1], seed, keep=(0,))
    token_ids = torch.arange(len(log_probs)) % log_probs.shape[-1]
    for spec in (Text(), TopK(k=2), Sampled(draws=2), Dense()):
        assert torch.equal(targets(spec, log_probs).token_ids, token_ids)
        assert torch.equal(targets(spec, log_probs, remap).token_ids, torch.from_numpy(remap)[token_ids])


def test_rows_follow_each_other_whatever_their_lengths():
    spec = TopK(k=3)
    profile = implementation(spec)(spec)
    log_probs = torch.randn(7, 9, generator=generator()).log_softmax(-1)
    parts = [profile.keep(part, generator()) for part in log_probs.split([2, 1, 4])]
    token_ids = [np.array(ids) for ids in ([0, 1], [2], [3, 4, 5, 6])]
    joined = profile.targets({name: [part[name] for part in parts] for name in parts[0]}, token_ids, None)
    at_once = profile.targets(
        {name: [column] for name, column in profile.keep(log_probs, generator()).items()}, [np.arange(7)], None
    )
    assert torch.equal(joined.ids, at_once.ids)
    assert torch.equal(joined.log_probs, at_once.log_probs)
    assert torch.equal(joined.log_tail, at_once.log_tail)
    assert torch.equal(joined.token_ids, at_once.token_ids)


# ── trimmed vocabularies ─────────────────────────────────────────────────────────────────────────


def trimmed(size, seed, keep=()):
    """int64 [size]: new ids in a random order, −1 for about half of them."""
    random = np.random.default_rng(seed)
    stay = random.random(size) < 0.5
    stay[list(keep)] = True
    remap = np.full(size, -1, np.int64)
    remap[stay] = random.permutation(int(stay.sum()))
    return remap


def assert_remapped(before, after, remap):
    assert torch.equal(after, torch.where(before >= 0, torch.from_numpy(remap)[before], -1))


# ── the KL that is told ──────────────────────────────────────────────────────────────────────────

KEPT = [
    EvalSoftLabels(),
    EvalSoftLabels(least=3, rest=1e-4, draws=512),
    TopK(k=3),
    TopK(k=3, tail_draws=0),
    TopK(k=3, tail_draws=3),
]
KEPT += [Sampled(draws=3), Sampled(draws=20, exponent=0.5), Dense()]


def exact_kl(log_probs, remap, logits):
    """KL(P‖Q) and the dropped mass [T] in float64, P normalised over the tokens that stay."""
    p, q = log_probs.double(), logits.double().log_softmax(-1)
    if remap is not None:
        old = np.flatnonzero(remap >= 0)
        p, q = p[:, old], q[:, remap[old]]
    dropped, p = 1 - p.exp().sum(-1), p.log_softmax(-1)
    return torch.where(p.exp() > 0, p.exp() * (p - q), 0).sum(-1), dropped


def students(draw_seed, log_probs, remap, apart):
    size = log_probs.shape[-1] if remap is None else int((remap >= 0).sum())
    near = torch.zeros(len(log_probs), size)
    old = np.arange(size) if remap is None else np.flatnonzero(remap >= 0)
    near[:, old if remap is None else remap[old]] = log_probs[:, old].clamp_min(-40)
    return near + apart * torch.randn(near.shape, generator=generator(draw_seed))


@pytest.mark.parametrize("spec", KEPT, ids=lambda spec: f"{type(spec).__name__} {spec.model_dump()}")
@given(distributions(least=4), st.booleans(), st.sampled_from([0.0, 0.1, 3.0]), st.integers(0, 2**32 - 1))
def test_no_kl_is_below_zero_whatever_was_kept_and_trimmed(spec, log_probs, trim, apart, seed):
    remap = trimmed(log_probs.shape[-1], seed, keep=(0,)) if trim else None
    logits = students(seed, log_probs, remap, apart)
    found = targets(spec, log_probs, remap, seed)
    for values in (kl(found, logits), token_loss((ForwardKL(),), found, logits)):
        assert not (values < -1e-5).any()  # the rounding of float32 at logits of 40
        # Of eval rows a KL is not measured where nothing that is known of the teacher stays in the vocabulary.
        assert isinstance(spec, EvalSoftLabels) or not values.isnan().any()


@given(distributions(least=4), st.booleans(), st.sampled_from([0.0, 0.1, 3.0]), st.integers(0, 2**32 - 1))
def test_the_kl_of_eval_rows_is_the_dense_one(log_probs, trim, apart, seed):
    remap = trimmed(log_probs.shape[-1], seed, keep=(0,)) if trim else None
    logits = students(seed, log_probs, remap, apart)
    expected, dropped = exact_kl(log_probs, remap, logits)
    for spec in (EvalSoftLabels(), Dense()):
        found = targets(spec, log_probs, remap, seed)
        torch.testing.assert_close(kl(found, logits).double(), expected, atol=1e-4, rtol=1e-4)
        if trim:
            torch.testing.assert_close(found.dropped.double(), dropped, atol=1e-4, rtol=0)


@pytest.mark.parametrize("trim", [False, True])
@pytest.mark.parametrize("apart", [0.0, 0.5, 1.5])
def test_the_kl_of_a_large_vocabulary_is_the_dense_one_though_its_tail_is_drawn(trim, apart):
    """30 tokens of an answer, of which the 4,096 likeliest and 99.95 % of the mass are named."""
    log_probs = (torch.randn(30, 30_000, generator=generator()) * 3).log_softmax(-1)
    remap = trimmed(30_000, 1) if trim else None
    logits = students(2, log_probs, remap, apart)
    found = targets(EvalSoftLabels(), log_probs, remap)
    assert (found.log_probs.isneginf().sum(-1) > 5000).all() or trim
    expected, dropped = exact_kl(log_probs, remap, logits)
    assert kl(found, logits).double().mean().item() == pytest.approx(expected.mean().item(), abs=1e-4)
    if trim:
        torch.testing.assert_close(found.dropped.double(), dropped, atol=3e-4, rtol=0)


def test_a_row_that_is_not_measured_has_no_kl():
    log_probs = torch.randn(3, 20, generator=generator()).log_softmax(-1)
    profile, labels = kept(EvalSoftLabels(), log_probs)
    nothing = profile.nothing(2)
    both = {name: [column, nothing[name]] for name, [column] in labels.items()}
    for remap in (None, trimmed(20, 0, keep=(0,))):
        found = profile.targets(both, [np.zeros(3, int), np.zeros(2, int)], remap)
        size = 20 if remap is None else int((remap >= 0).sum())
        assert kl(found, torch.zeros(5, size)).isnan().tolist() == [False] * 3 + [True] * 2


@pytest.mark.parametrize("spec", [TopK(k=2, tail_draws=5), Sampled(draws=5), Sampled(draws=5, exponent=0.5)])
def test_what_draws_give_is_the_kl_on_average(spec):
    p = torch.tensor([0.4, 0.25, 0.12, 0.1, 0.06, 0.04, 0.03]).log()
    logits = torch.tensor([[0.5, 0.2, 1.0, -1.0, 0.3, 2.0, -2.0]])
    expected, positions = exact_kl(p[None], None, logits)[0].item(), 20_000
    each = kl(targets(spec, p.expand(positions, -1)), logits.expand(positions, -1))
    assert each.mean().item() == pytest.approx(expected, abs=4.5 * each.std().item() / positions**0.5 + 1e-3)
