"""Learning to write: where labels stand, what gradients depend on, exact resume, answers, tokenizers that differ."""

import itertools
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from hypothesis import given, settings
from hypothesis import strategies as st

from distillctl.data.view_table import ViewTable
from distillctl.errors import DataError, RecipeError
from distillctl.losses.targets import DenseTargets, Targets
from distillctl.recipe import ULD, CrossEntropy, Dense, ForwardKL, Text, TopK, Train
from distillctl.run_dir.facts import VocabularyFacts
from distillctl.soft_labels.dense import DenseLabels
from distillctl.soft_labels.response_shards import Responses
from distillctl.soft_labels.text import TextLabels
from distillctl.soft_labels.top_k import TopKLabels
from distillctl.students.student import Student
from distillctl.tasks.generate import response_rows
from distillctl.tasks.generate.objective import Generation, answers, greedy_config, score
from distillctl.tasks.generate.response_rows import ResponseRows, check_terms
from distillctl.training.checkpoints import Checkpoints
from distillctl.training.loop import TrainingRun
from tests.fixtures import tiny_generate

pytestmark = pytest.mark.slow

SPEC = Train(
    epochs=4, batch_rows=8, learning_rate=1e-2, checkpoint_every=3, evaluate_every=4, patience=99, clip_norm=1e9
)
KINDS = ["llama", "qwen2", "gemma3_text", "gpt2", "t5", "marian"]


def model_of(kind, **config):
    build = tiny_generate.seq2seq if kind in ("t5", "marian") else tiny_generate.decoder
    return build(kind, **config)


def drawn(count, seed=0, longest=12):
    """Views and responses of random tokens; the responses of 1 to 6."""
    generator = np.random.default_rng(seed)
    token = lambda size: generator.integers(2, tiny_generate.VOCABULARY, size).tolist()  # noqa: E731
    views = [token(generator.integers(1, longest + 1)) for _ in range(count)]
    return views, [[*token(generator.integers(0, 6)), tiny_generate.EOS_ID] for _ in range(count)]


@torch.inference_mode()
def log_probs(model, view, response):
    """What the model says at each response token, float32 [R, V]: one row alone, nothing padded, the head whole."""
    if model.config.is_encoder_decoder:
        start = model.config.decoder_start_token_id
        read = torch.tensor([[start, *response]])
        logits = model.eval()(input_ids=torch.tensor([view]), decoder_input_ids=read).logits[0, :-1]
    else:
        logits = model.eval()(input_ids=torch.tensor([view + response])).logits[0, len(view) - 1 : -1]
    return logits.log_softmax(-1)


def dense(views, responses, of):
    """Rows whose soft labels are ``of``: [R, V] per row."""

    def targets(some):
        ids = torch.tensor([token for row in some for token in responses[row]])
        return DenseTargets(ids, torch.cat([of[row] for row in some]))

    return ResponseRows(views, responses, targets, tiny_generate.VOCABULARY)


def taught(teacher, count, seed=0):
    views, responses = drawn(count, seed)
    return dense(views, responses, [log_probs(teacher, *pair) for pair in zip(views, responses, strict=True)])


def start(folder, kind="llama", train=None, held_out=None, spec=SPEC, terms=SPEC.loss, **config):
    set_seed(0)
    model = model_of(kind, **config)
    problem = Generation(train, held_out or train, terms, spec)
    return TrainingRun("student", model, problem, spec, 0, Checkpoints(folder / "checkpoints", "student", "k"))


# ── where the labels stand ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_that_is_the_teacher_has_no_kl_and_only_with_the_labels_in_their_places(kind):
    teacher = model_of(kind)
    views, responses = drawn(12)
    right = [log_probs(teacher, *pair) for pair in zip(views, responses, strict=True)]
    found = score(teacher, dense(views, responses, right), SPEC)
    assert np.abs(found.kl).max() < 1e-5
    assert found.same_top.tolist() == [1.0] * 12
    expected = [-p[range(len(ids)), ids].mean().item() for p, ids in zip(right, responses, strict=True)]
    np.testing.assert_allclose(found.nll, expected, rtol=1e-4)

    shifted = [torch.cat([p[-1:], p[:-1]]) for p in right]
    long = [row for row in range(12) if len(responses[row]) > 1]
    assert score(teacher, dense(views, responses, shifted), SPEC).kl[long].mean() > 0.1


def test_figures_are_means_over_tokens_whatever_row_they_are_in():
    teacher = model_of("llama")
    data = taught(teacher, 9)
    found = score(model_of("llama", seed=1), data, SPEC)
    tokens = np.array([len(ids) for ids in data.responses])
    assert found.tokens.tolist() == tokens.tolist()
    assert found.figures["kl"] == pytest.approx((found.kl * tokens).sum() / tokens.sum())
    assert set(found.figures) == {"kl", "nll", "agreement"}


def test_ids_that_only_pad_the_vocabulary_take_no_probability():
    model = model_of("llama", vocabulary=tiny_generate.VOCABULARY + 20)
    views, responses = drawn(5)
    labels = [log_probs(model, *pair) for pair in zip(views, responses, strict=True)]
    cut = [p[:, : tiny_generate.VOCABULARY].log_softmax(-1) for p in labels]
    assert np.abs(score(model, dense(views, responses, cut), SPEC).kl).max() < 1e-5


# ── the gradient ─────────────────────────────────────────────────────────────────────────────────


def gradients(run, batches):
    run.model.zero_grad()
    run.model.eval()  # no dropout: only the batching differs
    run.model.train = lambda mode=True: run.model
    loss, _ = run._step(batches)
    return loss, torch.cat([p.grad.flatten() for p in run.model.parameters() if p.grad is not None])


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "t5"])
@settings(max_examples=5)
@given(order=st.permutations(range(9)), cuts=st.lists(st.integers(1, 8), max_size=3, unique=True))
def test_batch_composition_padding_and_accumulation_do_not_change_the_gradient(tmp_path_factory, kind, order, cuts):
    run = start(tmp_path_factory.mktemp("run"), kind, taught(model_of(kind, seed=1), 9))
    run.model.double()  # what is left is the law, not the rounding
    loss, whole = gradients(run, [list(range(9))])
    parts = [list(order[a:b]) for a, b in itertools.pairwise([0, *sorted(cuts), 9])]
    again, found = gradients(run, parts)
    torch.testing.assert_close(found, whole, atol=1e-9, rtol=1e-6)
    assert again == pytest.approx(loss, rel=1e-9)


@pytest.mark.parametrize("kind", ["llama", "marian"])
def test_a_step_is_the_mean_over_response_tokens_and_nothing_else(tmp_path, kind):
    views, responses = [[5] * 30, [7, 8]], [[9, tiny_generate.EOS_ID], [11, 12, 13, 14, 15, tiny_generate.EOS_ID]]
    rows_of = ResponseRows(
        views, responses, lambda some: Targets(torch.tensor([t for row in some for t in responses[row]])), 300
    )
    run = start(tmp_path, kind, rows_of, terms=(CrossEntropy(),))
    loss, _ = gradients(run, [[0, 1]])
    nll = [-log_probs(run.model, *pair)[range(len(pair[1])), pair[1]] for pair in zip(views, responses, strict=True)]
    assert loss == pytest.approx(torch.cat(nll).mean().item(), rel=1e-5)


def test_padding_gets_no_gradient(tmp_path):
    run = start(tmp_path, "llama", taught(model_of("llama", seed=1), 9))
    gradients(run, [list(range(9))])
    of_inputs = run.model.get_input_embeddings().weight.grad
    assert not of_inputs[tiny_generate.PAD_ID].any()
    assert of_inputs[tiny_generate.PAD_ID + 2 :].any()


# ── the loop ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("kind", "stop_at"), [("llama", 4), ("t5", 10)])
def test_resumed_and_unbroken_runs_agree_bit_for_bit(tmp_path, kind, stop_at):
    teacher = model_of(kind, seed=1)
    train, held_out = taught(teacher, 24), taught(teacher, 6, seed=1)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = start(tmp_path / "a", kind, train, held_out)
    assert whole.fit(tmp_path / "a" / "metrics.jsonl").steps == 12

    broken = start(tmp_path / "b", kind, train, held_out)
    left, step = iter(range(stop_at)), broken._step

    def dies(*args):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return step(*args)

    broken._step = dies
    with pytest.raises(KeyboardInterrupt):
        broken.fit(tmp_path / "b" / "metrics.jsonl")
    again = start(tmp_path / "b", kind, train, held_out)
    torch.rand(17)  # whatever else used the generator: T5 has dropout
    assert again.fit(tmp_path / "b" / "metrics.jsonl").resumed_from == stop_at // 3 * 3
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name


def lookup(count, seed, sure=0.9):
    """Views of 1 to 4 tokens, of which the last one says what the response is; the teacher has little doubt."""
    generator = np.random.default_rng(seed)
    views = [generator.integers(10, 20, generator.integers(1, 5)).tolist() for _ in range(count)]
    said = [[*np.random.default_rng(view[-1]).integers(30, 60, view[-1] % 3 + 1).tolist()] for view in views]
    responses = [[*ids, tiny_generate.EOS_ID] for ids in said]
    of = [
        torch.full((len(ids), tiny_generate.VOCABULARY), (1 - sure) / (tiny_generate.VOCABULARY - 1))
        for ids in responses
    ]
    for p, ids in zip(of, responses, strict=True):
        p[range(len(ids)), ids] = sure
    return dense(views, responses, [p.log() for p in of])


def test_it_learns_a_mapping_to_a_kl_near_zero_and_then_answers_so(tmp_path):
    train, held_out = lookup(300, 0), lookup(40, 1)
    spec = SPEC.model_copy(update={"learning_rate": 5e-3, "clip_norm": 1.0, "evaluate_every": 38})
    run = start(tmp_path, "llama", train, held_out, spec)
    torch.manual_seed(0)
    run.model.apply(run.model._init_weights)  # narrower ones learn faster
    before = score(run.model, held_out, spec).figures["kl"]
    run.fit(tmp_path / "metrics.jsonl")
    found = score(run.model, held_out, spec).figures
    assert found["kl"] < 0.02 < 4 < before
    assert found["agreement"] > 0.99
    said = answers(Student(run.model, None, 128), held_out.views, [tiny_generate.EOS_ID], 8, 256)
    assert said == held_out.responses


@pytest.fixture
def fresh_accelerate():
    """accelerate keeps one precision a process; a command line has one run in it, a test session many."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_mixed_precision_trains_and_leaves_a_float32_model(tmp_path, fresh_accelerate):
    spec = SPEC.model_copy(update={"mixed_precision": "bf16", "learning_rate": 3e-3, "clip_norm": 1.0})
    train, held_out = lookup(64, 0), lookup(16, 1)
    run = start(tmp_path, "llama", train, held_out, spec)
    before = score(run.model, held_out, SPEC).figures["kl"]
    run.fit(tmp_path / "metrics.jsonl")
    found = score(run.model, held_out, SPEC)
    assert found.figures["kl"] < 0.5 * before
    plain = model_of("llama")
    plain.load_state_dict(run.model.state_dict())
    assert score(plain, held_out, SPEC).kl.tolist() == found.kl.tolist()
    read = torch.tensor([held_out.views[0]])
    assert torch.equal(run.model(input_ids=read).logits, plain(input_ids=read).logits)


def test_without_distributions_the_likelihood_leads(tmp_path):
    teacher = model_of("llama", seed=1)
    data = taught(teacher, 6)
    text = replace(data, targets=lambda some: Targets(data.targets(some).token_ids))
    run = start(tmp_path, "llama", data)
    assert run.objective.held_out(run.model)[0] == score(run.model, data, SPEC).figures["kl"]
    run = start(tmp_path, "llama", data, terms=(CrossEntropy(),))
    assert run.objective.held_out(run.model)[0] == score(run.model, data, SPEC).figures["nll"]
    criterion, figures = start(tmp_path, "llama", text, terms=(CrossEntropy(),)).objective.held_out(run.model)
    assert criterion == figures["nll"]
    assert "kl" not in figures


# ── answers ──────────────────────────────────────────────────────────────────────────────────────


@torch.inference_mode()
def argmax_loop(model, view, stop, limit):
    said = []
    while len(said) < limit and not stop & set(said):
        if model.config.is_encoder_decoder:
            read = torch.tensor([[model.config.decoder_start_token_id, *said]])
            logits = model(input_ids=torch.tensor([view]), decoder_input_ids=read).logits
        else:
            logits = model(input_ids=torch.tensor([view + said])).logits
        said.append(int(logits[0, -1].argmax()))
    return said


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_greedy_whatever_the_batch_and_the_pretrained_models_habits(kind):
    model = model_of(kind)
    views, _ = drawn(10, seed=3, longest=20)
    unstopped = [argmax_loop(model, view, set(), 12) for view in views]
    stop = {unstopped[0][3], unstopped[4][6], tiny_generate.EOS_ID}
    expected = [argmax_loop(model, view, stop, 12) for view in views]
    assert {len(ids) for ids in expected} > {12}
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.num_beams = 3
    model.generation_config.min_new_tokens = 12
    habits = model.generation_config.to_dict()
    who = Student(model, None, 128)
    assert answers(who, views, stop, 12, 10_000) == expected
    assert answers(who, views, stop, 12, 1) == expected
    assert model.generation_config.to_dict() == habits


def test_the_saved_generation_config_is_greedy_and_knows_where_to_stop():
    config = greedy_config(model_of("marian"), {7, 1}, 12)
    assert (config.eos_token_id, config.max_new_tokens, config.num_beams, config.do_sample) == ([1, 7], 12, 1, False)
    assert config.decoder_start_token_id == tiny_generate.PAD_ID
    assert config.forced_eos_token_id is None


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────


def spoken(tokenizer, texts, cut=()):
    """Responses to the views "a" and "the", with no more than their text kept."""
    ends = [[] if row in cut else [tiny_generate.EOS_ID] for row in range(len(texts))]
    ids = [np.array([*tokenizer(text).input_ids, *end]) for text, end in zip(texts, ends, strict=True)]
    names = sorted(str(row % 2) for row in range(len(texts)))
    samples = [names[:row].count(name) for row, name in enumerate(names)]
    return Responses(names, samples, list(texts), ids, np.array([not end for end in ends]), {})


VIEWS = ViewTable(["0", "1"], ["a", "the"], [None, None], ["so a", "so the"], ["a", "the"])
TEXT = TextLabels(Text())


def rows(who, views, said, profile, **options):
    parts = [(views.id[:1], views.simplified[:1]), (views.id[1:], views.simplified[1:])]
    return response_rows.rows(who, parts, [said], profile, Path(tempfile.gettempdir()), **options)


def test_shared_tokens_are_taken_as_they_are():
    tokenizer = tiny_generate.bpe_tokenizer()
    said = spoken(tokenizer, ["river king", "old sea", "book"], cut=[1])
    who = Student(tiny_generate.decoder(), tokenizer, 128)
    made = rows(who, VIEWS, said, TEXT, shared_tokenizer=True, cut=False)
    assert list(made.responses) == [ids.tolist() for ids in said.token_ids]
    assert list(made.views) == [tokenizer(text).input_ids for text in ("a", "a", "the")]
    assert list(made.take([2, 0]).responses) == [made.responses[2], made.responses[0]]
    assert made.take([2, 0]).targets([1, 0]).token_ids.tolist() == made.responses[0] + made.responses[2]
    assert made.positions.tolist() == [len(ids) for ids in made.responses]
    assert made.lengths[1] == len(made.views[1]) + len(made.responses[1])


def test_other_tokens_are_those_of_the_text_and_end_unless_the_response_was_cut():
    theirs, own = tiny_generate.bpe_tokenizer(), tiny_generate.bpe_tokenizer(["zzz yyy"] * 20, 262, appends_eos=True)
    said = spoken(theirs, ["river king", "old sea", ""], cut=[1, 2])
    made = rows(Student(tiny_generate.decoder(), own, 128), VIEWS, said, TEXT, shared_tokenizer=False, cut=False)
    plain = [own(text, add_special_tokens=False).input_ids for text in said.text]
    assert list(made.responses) == [[*plain[0], tiny_generate.EOS_ID], plain[1], [tiny_generate.EOS_ID]]
    assert made.responses[0][:-1] != said.token_ids[0][:-1].tolist()
    assert made.targets([1, 0]).token_ids.tolist() == made.responses[1] + made.responses[0]


def test_a_trimmed_vocabulary_renames_tokens_and_refuses_a_response_it_cannot_say():
    tokenizer = tiny_generate.bpe_tokenizer()
    said = spoken(tokenizer, ["river king", "old sea"])
    kept = np.unique(np.concatenate([np.arange(2, 258), [0, 1], *said.token_ids]))
    size = tiny_generate.VOCABULARY
    trimmed = VocabularyFacts(tokens_before=size, tokens_after=len(kept), bytes_saved=0, share_saved=0.0)
    who = Student(tiny_generate.decoder(), tokenizer, 128, kept, trimmed)
    made = rows(who, VIEWS, said, TEXT, shared_tokenizer=True, cut=False)
    assert [kept[ids].tolist() for ids in made.responses] == [ids.tolist() for ids in said.token_ids]
    assert made.targets([0]).token_ids.tolist() == made.responses[0]
    last = int(max(said.token_ids[1]))
    without = replace(who, kept_ids=kept[kept != last])
    with pytest.raises(DataError, match=f"row 1: token {last} of the response is not in the trimmed vocabulary"):
        rows(without, VIEWS, said, TEXT, shared_tokenizer=True, cut=False)


@pytest.mark.parametrize("kind", ["llama", "marian"])
def test_a_response_longer_than_the_student_is_an_error_or_cut(kind):
    tokenizer = tiny_generate.bpe_tokenizer()
    said = spoken(tokenizer, ["river", "river king book city sea old young"])
    who = Student(model_of(kind, max_position_embeddings=9), tokenizer, 9)
    room = 9 if kind == "marian" else 9 - len(tokenizer("the").input_ids)
    with pytest.raises(DataError, match=rf"row 1: the response has \d+ tokens, the student has room for {room}$"):
        rows(who, VIEWS, said, TEXT, shared_tokenizer=True, cut=False)
    made = rows(who, VIEWS, said, TEXT, shared_tokenizer=True, cut=True)
    assert made.responses[1] == said.token_ids[1][:room].tolist()
    assert made.targets([1]).token_ids.tolist() == made.responses[1]
    assert np.isfinite(score(who.model, made, SPEC).nll).all()


def test_losses_that_need_the_same_tokens_are_refused_where_tokenizers_differ():
    check_terms((ForwardKL(),), shared_tokenizer=True)
    check_terms((CrossEntropy(), ULD()), shared_tokenizer=False)
    with pytest.raises(RecipeError, match=r"^train.loss\[1\]: forward_kl compares") as error:
        check_terms((CrossEntropy(), ForwardKL()), shared_tokenizer=False)
    assert "uld or cross_entropy" in error.value.next


@pytest.mark.parametrize("terms", [(ForwardKL(),), (ForwardKL(temperature=2.0), CrossEntropy(weight=0.5))])
def test_dense_and_top_k_of_the_whole_vocabulary_learn_the_same(tmp_path, terms):
    teacher, tokenizer = model_of("llama", seed=1), tiny_generate.bpe_tokenizer()
    said = spoken(tokenizer, ["river king", "old sea", "book"])
    found = []
    for profile in (DenseLabels(Dense()), TopKLabels(TopK(k=tiny_generate.VOCABULARY, temperatures=(2.0,)))):
        views = tokenizer(["a", "a", "the"]).input_ids
        kept = [
            profile.keep(log_probs(teacher, view, ids.tolist()), torch.Generator())
            for view, ids in zip(views, said.token_ids, strict=True)
        ]
        labelled = replace(said, labels={field.name: [row[field.name] for row in kept] for field in profile.fields})
        who = Student(tiny_generate.decoder(), tokenizer, 128)
        data = rows(who, VIEWS, labelled, profile, shared_tokenizer=True, cut=False)
        run = start(tmp_path, "llama", data, terms=terms)
        found.append((*gradients(run, [[0, 1, 2]]), score(run.model, data, SPEC).kl))
    (dense_loss, dense_gradient, dense_kl), (loss, gradient, kl) = found
    # Stored log-probabilities keep 11 significant bits.
    assert loss == pytest.approx(dense_loss, rel=1e-4)
    np.testing.assert_allclose(kl, dense_kl, rtol=1e-4)
    assert (gradient - dense_gradient).norm() < 1e-3 * dense_gradient.norm()
