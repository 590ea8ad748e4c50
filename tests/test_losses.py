"""Laws of the divergences, and gradients against float64 autograd of the plain formulas."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distillctl.losses.divergences import cross_entropy, forward_kl, jsd, reverse_kl
from distillctl.losses.objective import objective
from distillctl.recipe import JSD, CrossEntropy, ForwardKL, ReverseKL

ALL = [forward_kl, reverse_kl, jsd, lambda p, q: jsd(p, q, 0.1)]
TERMS = [ForwardKL(), ForwardKL(temperature=3.0), ReverseKL(temperature=2.0), JSD(beta=0.3), CrossEntropy(weight=0.5)]


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
    for divergence in [*ALL, cross_entropy]:
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


def test_a_label_the_teacher_rules_out_costs_nothing_and_gives_no_nan():
    p = torch.tensor([[0.0, -torch.inf]])
    q = torch.tensor([[0.3, 0.7]]).log().requires_grad_()
    loss = forward_kl(p, q)
    loss.sum().backward()
    torch.testing.assert_close(loss, torch.tensor([-math.log(0.3)]))
    assert q.grad.isfinite().all()


def test_cross_entropy_looks_at_the_teachers_top_label_only():
    p = torch.tensor([[0.2, 0.5, 0.3], [0.9, 0.05, 0.05]]).log()
    q = torch.tensor([[0.1, 0.6, 0.3], [0.25, 0.25, 0.5]]).log()
    torch.testing.assert_close(cross_entropy(p, q), -torch.tensor([0.6, 0.25]).log())


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
