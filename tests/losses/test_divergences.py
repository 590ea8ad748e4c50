"""Laws of the divergences, and gradients against float64 autograd of the plain formulas."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distillctl.losses.cross_tokenizer import align, uld
from distillctl.losses.divergences import cross_entropy, forward_kl, jsd, reverse_kl, skew_kl, tvd
from distillctl.losses.objective import objective
from distillctl.losses.targets import DenseTargets
from distillctl.recipe import JSD, TVD, CrossEntropy, ForwardKL, ReverseKL, SkewKL

ALL = [forward_kl, reverse_kl, jsd, lambda p, q: jsd(p, q, 0.1), skew_kl, lambda p, q: skew_kl(p, q, 0.9), tvd, uld]
TERMS = [
    ForwardKL(), ForwardKL(temperature=3.0), ReverseKL(temperature=2.0), JSD(beta=0.3), CrossEntropy(weight=0.5),
    SkewKL(alpha=0.3), SkewKL(temperature=0.5), TVD(temperature=1.5),
]  # fmt: skip


@st.composite
def log_prob_pairs(draw):
    seed = draw(st.integers(0, 2**32 - 1))
    scale = draw(st.sampled_from([0.01, 1.0, 8.0]))
    rows, size = draw(st.integers(1, 4)), draw(st.integers(2, 9))
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, rows, size, generator=generator) * scale
    return logits.log_softmax(-1).unbind(0)


@given(log_prob_pairs())
def test_zero_when_they_agree_and_never_negative(pair):
    p, q = pair
    for divergence in ALL:
        assert divergence(p, p).abs().max() < 1e-6
        assert divergence(p, q).min() > -1e-6


@given(log_prob_pairs())
def test_one_value_per_row_whatever_stands_beside_it(pair):
    p, q = pair
    for divergence in ALL:
        together = divergence(p, q)
        assert together.shape == p.shape[:-1]
        alone = torch.cat([divergence(p[i : i + 1], q[i : i + 1]) for i in range(len(p))])
        torch.testing.assert_close(together, alone)


@given(log_prob_pairs())
def test_kl_is_what_scipy_says(pair):
    from scipy.stats import entropy

    p, q = pair
    expected = entropy(p.double().exp().numpy(), q.double().exp().numpy(), axis=-1)
    torch.testing.assert_close(forward_kl(p, q).double(), torch.from_numpy(expected), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(reverse_kl(p, q), forward_kl(q, p))


@given(log_prob_pairs())
def test_jsd_is_symmetric_and_at_most_log_2_at_one_half(pair):
    p, q = pair
    torch.testing.assert_close(jsd(p, q), jsd(q, p), atol=1e-5, rtol=1e-4)
    assert jsd(p, q).max() <= math.log(2) + 1e-5


@given(log_prob_pairs(), st.floats(0.05, 0.95))
def test_jsd_mirrors_in_beta(pair, beta):
    p, q = pair
    torch.testing.assert_close(jsd(p, q, beta), jsd(q, p, 1 - beta), atol=1e-5, rtol=1e-4)


@given(log_prob_pairs(), st.floats(0.01, 0.99))
def test_skew_kl_is_kl_at_no_skew_and_bounded_at_any(pair, alpha):
    p, q = pair
    torch.testing.assert_close(skew_kl(p, q, 1e-30), forward_kl(p, q), atol=1e-4, rtol=1e-3)
    assert (skew_kl(p, q, alpha) <= torch.minimum(forward_kl(p, q), torch.tensor(-math.log(alpha))) + 1e-5).all()


@given(log_prob_pairs())
def test_tvd_is_a_share_symmetric_and_bounded_by_pinsker(pair):
    p, q = pair
    torch.testing.assert_close(tvd(p, q), tvd(q, p))
    assert tvd(p, q).max() <= 1 + 1e-6
    assert (tvd(p, q) <= (forward_kl(p, q).clamp_min(0) / 2).sqrt() + 1e-3).all()
    apart = torch.tensor([[0.0, -torch.inf]])
    torch.testing.assert_close(tvd(apart, apart.flip(-1)), torch.ones(1))


@pytest.mark.parametrize("divergence", ALL)
@pytest.mark.parametrize("impossible", ["teacher", "both"])
def test_an_outcome_that_is_ruled_out_costs_nothing_and_gives_no_nan(divergence, impossible):
    p = torch.tensor([[math.log(0.6), math.log(0.4), -torch.inf]])
    logits = torch.tensor([[0.3, -0.4, 0.1]]).requires_grad_()
    masked = logits.masked_fill(torch.tensor([False, False, impossible == "both"]), -torch.inf)
    q = masked.log_softmax(-1)
    loss = divergence(p, q)
    loss.sum().backward()
    if impossible == "both":
        torch.testing.assert_close(loss, divergence(p[:, :2], q[:, :2]))
        assert logits.grad.isfinite().all()
    elif divergence is reverse_kl:
        assert loss.isposinf().all()
    else:
        assert loss.isfinite().all()
        assert logits.grad.isfinite().all()


def test_cross_entropy_looks_at_the_given_outcome_and_skips_where_there_is_none():
    q = torch.tensor([[0.1, 0.6, 0.3], [0.25, 0.25, 0.5], [0.2, 0.2, 0.6]]).log()
    found = cross_entropy(torch.tensor([1, 0, -1]), q)
    torch.testing.assert_close(found, torch.tensor([-math.log(0.6), -math.log(0.25), 0.0]))


def test_hard_labels_are_the_teachers_top_ones():
    teacher = torch.tensor([[0.2, 0.5, 0.3], [0.9, 0.05, 0.05]]).log()
    student = torch.tensor([[0.1, 0.6, 0.3], [0.25, 0.25, 0.5]]).log()
    found = objective((CrossEntropy(),), teacher, student)
    torch.testing.assert_close(found, -torch.tensor([0.6, 0.25]).log())


@given(log_prob_pairs())
def test_uld_does_not_care_what_the_tokens_are_called_or_how_many_there_are(pair):
    p, q = pair
    renamed = q[:, torch.randperm(q.shape[-1], generator=torch.Generator().manual_seed(0))]
    larger = torch.nn.functional.pad(renamed, (0, 5), value=-torch.inf)
    torch.testing.assert_close(uld(p, larger), uld(p, q))
    torch.testing.assert_close(uld(larger, p), uld(q, p))
    assert (uld(p, q) <= 2 * tvd(p, q) + 1e-6).all()


def test_uld_by_hand():
    p, q = torch.tensor([[0.1, 0.7, 0.2]]).log(), torch.tensor([[0.5, 0.5]]).log()
    torch.testing.assert_close(uld(p, q), torch.tensor([0.2 + 0.3 + 0.1]))
    # 0.7 kept, 0.3 of tail, against 0.5 and the 0.5 beyond it.
    torch.testing.assert_close(uld(p[:, 1:2], q, torch.tensor([math.log(0.3)])), torch.tensor([0.4]))


@given(log_prob_pairs(), st.integers(1, 9))
def test_uld_of_the_likeliest_and_a_tail_is_at_most_that_of_all(pair, k):
    p, q = pair
    k = min(k, p.shape[-1])
    ranked = p.sort(-1, descending=True).values
    kept = uld(ranked[:, :k], q, ranked[:, k:].logsumexp(-1))
    assert (kept <= uld(p, q) + 1e-5).all()
    if k == p.shape[-1]:
        torch.testing.assert_close(kept, uld(p, q), atol=1e-5, rtol=1e-4)


def test_unlike_tokens_are_paired_in_order_up_to_the_shorter_end():
    teacher = DenseTargets(torch.arange(5), torch.arange(5.0)[:, None].expand(5, 2))
    found = align(teacher, [2, 3], [[7, 8, 9], [4, 5]])
    assert found.token_ids.tolist() == [7, 8, 9, 4, 5]
    assert found.has_counterpart.tolist() == [True, True, False, True, True]
    places = found.teacher.log_probs[:, 0][found.has_counterpart]
    assert places.tolist() == [0, 1, 2, 3]


def _plain(term, p64, logits64):
    """The objective from the definitions, in float64."""
    t = term.temperature
    p, q = (p64 / t).softmax(-1), (logits64 / t).softmax(-1)
    if term.kind == "forward_kl":
        value = (p * (p / q).log()).sum(-1)
    elif term.kind == "reverse_kl":
        value = (q * (q / p).log()).sum(-1)
    elif term.kind == "jsd":
        m = term.beta * p + (1 - term.beta) * q
        value = term.beta * (p * (p / m).log()).sum(-1) + (1 - term.beta) * (q * (q / m).log()).sum(-1)
    elif term.kind == "skew_kl":
        value = (p * (p / (term.alpha * p + (1 - term.alpha) * q)).log()).sum(-1)
    elif term.kind == "tvd":
        return term.weight * (p - q).abs().sum(-1) / 2
    else:
        return term.weight * -q.gather(-1, p.argmax(-1, keepdim=True)).log().squeeze(-1)
    return term.weight * t * t * value


@settings(deadline=None, max_examples=25)
@given(log_prob_pairs())
def test_objective_and_gradient_equal_float64_autograd(pair):
    teacher, student = pair
    for terms in [*[(term,) for term in TERMS], tuple(TERMS)]:
        logits = student.clone().requires_grad_()
        loss = objective(terms, teacher, logits)
        loss.sum().backward()
        logits64 = student.double().requires_grad_()
        expected = sum(_plain(term, teacher.double(), logits64) for term in terms)
        expected.sum().backward()
        torch.testing.assert_close(loss.double(), expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(logits.grad.double(), logits64.grad, atol=2e-4, rtol=1e-3)


def test_temperature_squared_keeps_the_gradient_of_one_size():
    torch.manual_seed(0)
    teacher = torch.randn(64, 6).log_softmax(-1)
    norms = []
    for temperature in (1.0, 4.0):
        logits = (teacher + 0.1 * torch.randn(64, 6, generator=torch.Generator().manual_seed(1))).requires_grad_()
        objective((ForwardKL(temperature=temperature),), teacher, logits).sum().backward()
        norms.append(logits.grad.norm().item())
    assert norms[1] / norms[0] == pytest.approx(1.0, abs=0.35)


def test_weights_add_up():
    teacher, logits = torch.randn(3, 5).log_softmax(-1), torch.randn(3, 5)
    both = objective((ForwardKL(weight=0.25), ReverseKL(weight=2.0)), teacher, logits)
    apart = 0.25 * objective((ForwardKL(),), teacher, logits) + 2 * objective((ReverseKL(),), teacher, logits)
    torch.testing.assert_close(both, apart)
