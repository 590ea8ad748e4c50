"""One loss, whatever was kept of the teacher: kept wholly it is the dense one, kept in part it is never more."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distillctl.errors import RecipeError
from distillctl.losses.cross_tokenizer import align, uld
from distillctl.losses.subset_log_probs import LOG_ZERO, subset_log_probs
from distillctl.losses.targets import AlignedTargets, DenseTargets, SampledTargets, Targets, TopKTargets
from distillctl.losses.token_loss import kl, token_loss
from distillctl.recipe import JSD, TVD, ULD, CrossEntropy, ForwardKL, ReverseKL, SkewKL

DIVERGENCES = [ForwardKL(), ReverseKL(), JSD(beta=0.3), SkewKL(), TVD()]
TEMPERATURES = (0.5, 1.0, 3.0)
EVERY_TERM = [
    term.model_copy(update={"temperature": temperature})
    for term in [*DIVERGENCES, CrossEntropy(), ULD()]
    for temperature in TEMPERATURES
    # log p̄ below T = 1 is known only between bounds, and of all terms reverse KL alone depends on how small p̄ is.
    if (term.kind, temperature) != ("reverse_kl", 0.5)
]


def top_k(log_probs, k, token_ids=None, temperatures=TEMPERATURES):
    """As collect keeps it."""
    head, ids = log_probs.topk(k, -1)
    tail = log_probs.scatter(-1, ids, -torch.inf).logsumexp(-1)
    sums = {t: (log_probs / t).logsumexp(-1) for t in temperatures}
    return TopKTargets(log_probs.argmin(-1) if token_ids is None else token_ids, ids, head, tail, sums)


@st.composite
def problems(draw):
    """Teacher log-probabilities and student logits, [N, V] float32, and response tokens; some far apart, some sharp."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    rows, size = draw(st.integers(1, 3)), draw(st.integers(2, 12))
    teacher = torch.randn(rows, size, generator=generator) * draw(st.sampled_from([0.1, 1.0, 6.0]))
    student = torch.randn(rows, size, generator=generator) * draw(st.sampled_from([0.1, 1.0, 6.0]))
    return teacher.log_softmax(-1), student, torch.randint(size, (rows,), generator=generator)


@settings(deadline=None)
@given(problems())
def test_all_tokens_kept_is_the_whole_distribution(problem):
    teacher, logits, token_ids = problem
    for term in EVERY_TERM:
        kept = token_loss((term,), top_k(teacher, teacher.shape[-1], token_ids), logits)
        whole = token_loss((term,), DenseTargets(token_ids, teacher), logits)
        torch.testing.assert_close(kept, whole, atol=2e-4, rtol=1e-3)


@settings(deadline=None)
@given(problems(), st.integers(1, 12))
def test_lumping_the_tail_never_makes_it_more(problem, k):
    teacher, logits, token_ids = problem
    for term in [term for term in EVERY_TERM if term.kind != "cross_entropy"]:
        kept = token_loss((term,), top_k(teacher, min(k, teacher.shape[-1]), token_ids), logits)
        whole = token_loss((term,), DenseTargets(token_ids, teacher), logits)
        assert (kept <= whole + 2e-4 + 1e-3 * whole.abs()).all(), term
        assert (kept >= -2e-4).all(), term


@settings(deadline=None)
@given(problems(), st.integers(1, 12))
def test_nothing_between_a_teacher_and_itself(problem, k):
    teacher, _, token_ids = problem
    targets = top_k(teacher, min(k, teacher.shape[-1]), token_ids)
    for term in [term for term in EVERY_TERM if term.kind != "cross_entropy"]:
        assert token_loss((term,), targets, teacher + 3).abs().max() < 2e-4, term
    assert kl(DenseTargets(token_ids, teacher), teacher + 3).abs().max() < 1e-5


def _lumped(term, p, logits, ids):
    """A term over the tokens ``ids`` and all others as one, in float64, from the definitions."""
    t = term.temperature
    p, q = (p / t).softmax(-1), (logits / t).softmax(-1)
    others = torch.ones(len(p), dtype=torch.bool)
    others[ids] = False
    p, q = (torch.cat([side[ids], side[others].sum(0, keepdim=True)]) for side in (p, q))
    if term.kind == "forward_kl":
        value = (p * (p / q).log()).sum()
    elif term.kind == "reverse_kl":
        value = (q * (q / p).log()).sum()
    elif term.kind == "jsd":
        m = term.beta * p + (1 - term.beta) * q
        value = term.beta * (p * (p / m).log()).sum() + (1 - term.beta) * (q * (q / m).log()).sum()
    elif term.kind == "skew_kl":
        value = (p * (p / (term.alpha * p + (1 - term.alpha) * q)).log()).sum()
    else:
        return (p - q).abs().sum() / 2
    return t * t * value


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("term", DIVERGENCES, ids=lambda term: term.kind)
def test_values_and_gradients_are_those_of_the_definition_in_float64(term, temperature):
    term = term.model_copy(update={"temperature": temperature, "weight": 0.7})
    generator = torch.Generator().manual_seed(3)
    teacher = torch.randn(6, 40, generator=generator).mul(2).log_softmax(-1)
    logits = torch.randn(6, 40, generator=generator).mul(2).requires_grad_()
    targets = top_k(teacher, 5)
    found = token_loss((term,), targets, logits)
    found.sum().backward()
    exact = logits.detach().double().requires_grad_()
    rows = [_lumped(term, teacher[n].double(), exact[n], targets.ids[n]) for n in range(6)]
    expected = 0.7 * torch.stack(rows)
    expected.sum().backward()
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(logits.grad.double(), exact.grad, atol=1e-5, rtol=1e-4)


def test_a_student_too_sure_of_itself_is_told_exactly_how_much():
    # A tail of e^-30 is nothing beside 1 in float32: from 1 − Σ q there would be no value and no gradient.
    teacher = torch.tensor([[0.5, 0.3, 0.1, 0.1]]).log()
    logits = torch.tensor([[30.0, 29.0, 0.0, -1.0]]).requires_grad_()
    found = kl(top_k(teacher, 2), logits)
    found.sum().backward()
    exact = logits.detach().double().requires_grad_()
    q = exact.log_softmax(-1)
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.double)
    lumped = torch.stack([q[0, 0], q[0, 1], q[0, 2:].logsumexp(0)])
    expected = (p * (p.log() - lumped)).sum()
    expected.backward()
    torch.testing.assert_close(found[0].double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("tail", [1e-4, 1e-6, 1e-9])
@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_a_teacher_sure_of_its_answer_keeps_a_tail_at_every_temperature(tail, temperature):
    teacher = torch.tensor([[1 - tail, *[tail / 50] * 50]], dtype=torch.double).log()
    exact = top_k(teacher, 1)
    sums = {temperature: (teacher / temperature).logsumexp(-1).float()}
    targets = TopKTargets(exact.token_ids, exact.ids, exact.log_probs.float(), exact.log_tail.float(), sums)
    for term in (ForwardKL(temperature=temperature), ReverseKL(temperature=temperature)):
        logits = torch.zeros(1, 51, requires_grad=True)
        found = token_loss((term,), targets, logits)
        found.sum().backward()
        assert found.isfinite().all()
        assert logits.grad.isfinite().all()
        if term.kind == "forward_kl" or temperature > 1:
            expected = _lumped(term, teacher[0], torch.zeros(51).double(), [0])
            torch.testing.assert_close(found[0].double(), expected, atol=1e-4, rtol=1e-2)


@settings(deadline=None, max_examples=30)
@given(problems(), st.integers(1, 6), st.integers(0, 2**16))
def test_missing_ranks_and_tokens_are_as_if_they_were_not_there(problem, k, seed):
    teacher, logits, token_ids = problem
    k = min(k, teacher.shape[-1])
    targets = top_k(teacher, k, token_ids)
    generator = torch.Generator().manual_seed(seed)
    # −1 anywhere in the row, as after trimming the vocabulary: with the mass of a dropped token in the tail.
    drop = torch.rand(targets.ids.shape, generator=generator) < 0.4
    mass = torch.where(drop, targets.log_probs, -torch.inf).logsumexp(-1)
    dropped = TopKTargets(
        token_ids,
        torch.where(drop, -1, targets.ids),
        targets.log_probs.masked_fill(drop, -torch.inf),
        torch.logaddexp(targets.log_tail, mass),
        targets.log_sums,
    )
    for term in [term for term in EVERY_TERM if term.kind != "uld" and term.temperature != 0.5]:
        student = logits.clone().requires_grad_()
        found = token_loss((term,), dropped, student)
        found.sum().backward()
        assert student.grad.isfinite().all(), term
        if term.kind == "cross_entropy":
            continue
        exact = logits.double().requires_grad_()
        kept = [row_ids[~row_drop] for row_ids, row_drop in zip(targets.ids, drop, strict=True)]
        if any(len(ids) == teacher.shape[-1] for ids in kept):
            continue  # no others: the definition divides by zero
        expected = torch.stack([_lumped(term, teacher[n].double(), exact[n], ids) for n, ids in enumerate(kept)])
        expected.sum().backward()
        torch.testing.assert_close(found.double(), expected, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(student.grad.double(), exact.grad, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("term", [*DIVERGENCES, CrossEntropy(), ULD()], ids=lambda term: term.kind)
def test_a_position_without_any_id_is_safe(term):
    none = torch.full((1, 3), -1)
    targets = TopKTargets(
        torch.tensor([-1]), none, torch.full((1, 3), -torch.inf), torch.zeros(1), {1.0: torch.zeros(1)}
    )
    logits = torch.randn(1, 7, requires_grad=True)
    found = token_loss((term,), targets, logits)
    found.sum().backward()
    assert logits.grad.isfinite().all()
    if term.kind != "uld":  # the others are all there is, on both sides; uld compares ranks, of which none is known
        torch.testing.assert_close(found, torch.zeros(1), atol=1e-6, rtol=0)


def test_a_student_without_other_tokens_is_not_asked_for_them():
    # All three tokens of a trimmed vocabulary are among the k, and the dropped ones' mass is in the tail.
    head = torch.tensor([[0.5, 0.2, 0.1]]).log()
    targets = TopKTargets(torch.tensor([0]), torch.tensor([[2, 0, 1]]), head, torch.tensor([0.2]).log(), {})
    for term in DIVERGENCES:
        logits = torch.tensor([[0.1, 0.2, 0.3]]).requires_grad_()
        found = token_loss((term,), targets, logits)
        found.sum().backward()
        assert found.isfinite().all()
        assert logits.grad.isfinite().all()


@settings(deadline=None)
@given(problems())
def test_cross_entropy_is_on_the_response_and_the_same_for_every_profile(problem):
    teacher, logits, token_ids = problem
    k = min(3, teacher.shape[-1])
    drawn = SampledTargets(token_ids, top_k(teacher, k).ids, torch.rand(len(teacher), k), torch.zeros(len(teacher), k))
    for temperature in TEMPERATURES:
        expected = torch.nn.functional.cross_entropy(logits / temperature, token_ids, reduction="none")
        term = CrossEntropy(temperature=temperature)
        for targets in (
            Targets(token_ids), DenseTargets(token_ids, teacher), top_k(teacher, k, token_ids), drawn,
            align(top_k(teacher, k), [len(teacher)], [token_ids.tolist()]),
        ):  # fmt: skip
            student = logits.clone().requires_grad_()
            found = token_loss((term,), targets, student)
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
            found.sum().backward()
            exact = (logits / temperature).softmax(-1) - torch.nn.functional.one_hot(token_ids, logits.shape[-1])
            torch.testing.assert_close(student.grad, exact / temperature, atol=1e-4, rtol=1e-4)


def test_draws_give_the_dense_loss_and_its_gradient_on_average():
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(30, generator=generator).mul(2).log_softmax(-1)
    logits = torch.randn(30, generator=generator).mul(2)
    exponent, draws, rounds = 0.7, 20, 4000
    proposal = (exponent * teacher).softmax(-1)
    ids = torch.multinomial(proposal.expand(rounds, -1), draws, replacement=True, generator=generator)
    counts = torch.zeros(rounds, 30).scatter_add_(-1, ids, torch.ones(rounds, draws))
    ids = torch.arange(30).where(counts > 0, -1)
    weights = counts * teacher.exp() / proposal / draws
    targets = SampledTargets(torch.zeros(rounds, dtype=torch.int64), ids, weights, teacher.expand(rounds, -1))
    student = logits.expand(rounds, -1).clone().requires_grad_()
    found = token_loss((ForwardKL(),), targets, student)
    found.sum().backward()
    whole = logits[None].clone().requires_grad_()
    expected = kl(DenseTargets(torch.zeros(1, dtype=torch.int64), teacher[None]), whole)
    expected.sum().backward()
    assert found.mean().item() == pytest.approx(expected.item(), abs=4 * found.std().item() / rounds**0.5)
    error = 4 * student.grad.std(0) / rounds**0.5 + 1e-6
    assert ((student.grad.mean(0) - whole.grad[0]).abs() <= error).all()


def test_draws_are_weighed_as_they_are():
    # Σ w (log P/Q + Q/P − 1) with weights that do not sum to 1, one id padded.
    q = torch.tensor([[0.5, 0.25, 0.25]])
    targets = SampledTargets(
        torch.tensor([0]),
        torch.tensor([[0, 2, -1]]),
        torch.tensor([[0.6, 0.2, 0.0]]),
        torch.tensor([[0.7, 0.1, 1.0]]).log(),
    )
    expected = 0.6 * (math.log(0.7 / 0.5) + 0.5 / 0.7 - 1) + 0.2 * (math.log(0.1 / 0.25) + 0.25 / 0.1 - 1)
    torch.testing.assert_close(token_loss((ForwardKL(),), targets, q.log() + 2), torch.tensor([expected]))
    torch.testing.assert_close(kl(targets, q.log() + 2), torch.tensor([expected]))


def test_unlike_tokenizers_compare_ranks_where_there_is_a_counterpart():
    teacher = torch.randn(3, 11).mul(2).log_softmax(-1)
    logits = torch.randn(4, 6)
    ids = [[1, 2, 3], [4]]
    whole = token_loss((ULD(),), align(DenseTargets(torch.zeros(3).long(), teacher), [2, 1], ids), logits)
    q = logits.log_softmax(-1)
    torch.testing.assert_close(whole[:2], uld(teacher[:2], q[:2]))
    torch.testing.assert_close(whole[2:], torch.stack([torch.zeros(()), uld(teacher[2], q[3])]))
    kept = token_loss((ULD(),), align(top_k(teacher, 4), [2, 1], ids), logits)
    assert (kept <= whole + 1e-6).all()
    warm = token_loss((ULD(temperature=3.0),), align(top_k(teacher, 11), [2, 1], ids), logits)
    torch.testing.assert_close(warm[3], uld((teacher[2] / 3).log_softmax(-1), (logits[3] / 3).log_softmax(-1)))


def _refusals():
    ids, row = torch.zeros(1, dtype=torch.int64), torch.zeros(1, 3).log_softmax(-1)
    sampled = SampledTargets(ids, ids[:, None], torch.ones(1, 1), torch.zeros(1, 1))
    aligned = AlignedTargets(ids, DenseTargets(ids, row), torch.ones(1, dtype=torch.bool))
    yield from ((Targets(ids), term) for term in [*DIVERGENCES, ULD()])
    yield from ((sampled, term) for term in [*DIVERGENCES[1:], ULD(), ForwardKL(temperature=2.0)])
    yield from ((aligned, term) for term in DIVERGENCES)
    yield from ((top_k(row, 2, ids, ()), term) for term in (ForwardKL(temperature=2.0), ULD(temperature=2.0)))


@pytest.mark.parametrize(("targets", "term"), _refusals(), ids=lambda each: getattr(each, "kind", type(each).__name__))
def test_what_was_not_kept_is_told(targets, term):
    with pytest.raises(RecipeError) as told:
        token_loss((term,), targets, torch.zeros(1, 3))
    assert told.value.where == "train.loss"
    assert told.value.next


def test_kl_needs_a_distribution():
    with pytest.raises(RecipeError, match="forward_kl"):
        kl(Targets(torch.zeros(1, dtype=torch.int64)), torch.zeros(1, 3))


def test_terms_add_up_across_temperatures():
    teacher, logits = torch.randn(3, 9).log_softmax(-1), torch.randn(3, 9)
    targets = top_k(teacher, 4)
    terms = (ForwardKL(weight=0.25), JSD(weight=2.0, temperature=3.0), CrossEntropy(weight=0.5))
    apart = sum(token_loss((term,), targets, logits) for term in terms)
    torch.testing.assert_close(token_loss(terms, targets, logits), apart)
    torch.testing.assert_close(
        token_loss((ForwardKL(temperature=3.0),), DenseTargets(targets.token_ids, teacher), logits),
        9 * kl(DenseTargets(targets.token_ids, (teacher / 3).log_softmax(-1)), logits / 3),
    )


def test_as_many_targets_as_logits():
    teacher = torch.zeros(3, 5).log_softmax(-1)
    with pytest.raises(ValueError, match="3 targets for 2 rows"):
        token_loss((ForwardKL(),), DenseTargets(torch.zeros(3).long(), teacher), torch.zeros(2, 5))


def test_rows_of_targets_belong_together():
    teacher = torch.randn(5, 9).log_softmax(-1)
    logits = torch.randn(5, 9)
    inner = top_k(teacher, 4)
    terms = (CrossEntropy(), ULD(temperature=3.0))
    for targets in (inner, align(inner, [3, 2], [[1, 2, 3, 4], [5]])):
        together = token_loss(terms, targets, logits)
        torch.testing.assert_close(token_loss(terms, targets.rows(slice(1, 3)), logits[1:3]), together[1:3])
        index = torch.tensor([4, 0])
        torch.testing.assert_close(token_loss(terms, targets.to("cpu").rows(index), logits[index]), together[index])


def test_named_tokens_are_named_once_and_the_others_summed():
    logits = torch.randn(4, 6, dtype=torch.double)
    ids = torch.tensor([[0, 3, 3], [2, -1, 2], [-1, -1, -1], [0, -1, 5]])
    found = subset_log_probs(logits, ids)
    q = logits.log_softmax(-1)
    for row, names in enumerate(ids.tolist()):
        others = [token for token in range(6) if token not in names]
        torch.testing.assert_close(found.log_rest[row], q[row, others].logsumexp(0))
        seen = set()
        for column, token in enumerate(names):
            value = q[row, token] if token >= 0 else torch.tensor(LOG_ZERO, dtype=torch.double)
            torch.testing.assert_close(found.log_probs[row, column], value)
            first = torch.tensor(LOG_ZERO, dtype=torch.double) if token in seen else value
            torch.testing.assert_close(found.once[row, column], first)
            seen.add(token)


def test_gradients_of_named_tokens_in_float64():
    logits = torch.randn(5, 6, dtype=torch.double, requires_grad=True)
    ids = torch.tensor([[0, 3, 3], [2, -1, 2], [-1, -1, -1], [0, -1, 5], [4, 1, 0]])
    weights = torch.randn(5, 3, dtype=torch.double).masked_fill(ids < 0, 0)
    found = subset_log_probs(logits, ids, 1.7)
    ((found.log_probs * weights).sum() + (found.log_rest * weights.sum(-1)).sum()).backward()
    exact = logits.detach().requires_grad_()
    q = (exact / 1.7).log_softmax(-1)
    others = torch.ones(5, 6, dtype=torch.bool)
    for row, names in enumerate(ids.tolist()):
        others[row, [name for name in names if name >= 0]] = False
    rest = q.masked_fill(~others, -torch.inf).logsumexp(-1)
    ((q.gather(-1, ids.clamp_min(0)) * weights).sum() + (rest * weights.sum(-1)).sum()).backward()
    torch.testing.assert_close(logits.grad, exact.grad)


def test_a_second_way_back_is_refused_and_not_wrong():
    logits = torch.randn(2, 6, requires_grad=True)
    loss = subset_log_probs(logits, torch.tensor([[1], [2]])).log_probs.sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="inplace"):
        loss.backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_logits_are_compared_in_float32(dtype):
    teacher = torch.randn(3, 9).log_softmax(-1)
    logits = torch.randn(3, 9).to(dtype).requires_grad_()
    for targets in (top_k(teacher, 4), DenseTargets(torch.zeros(3).long(), teacher)):
        found = token_loss((ForwardKL(),), targets, logits)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, token_loss((ForwardKL(),), targets, logits.float()))
        found.sum().backward()
        assert logits.grad.dtype == dtype
