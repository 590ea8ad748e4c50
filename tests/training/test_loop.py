"""The loop: gradients that do not depend on how rows are batched, exact resume, early stopping, students' shapes."""

import itertools

import numpy as np
import pytest
import torch
from accelerate.utils import set_seed
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification

from distillctl import cautions
from distillctl.errors import DataError, GateFailed, RecipeError
from distillctl.metrics import scores
from distillctl.recipe import CrossEntropy, Train, implementation
from distillctl.students.student import Corpus, Student, finish
from distillctl.students.truncated import keep_layers
from distillctl.tasks.classify.objective import Classification, LabelRows, predict
from distillctl.training.checkpoints import Checkpoints, forget
from distillctl.training.loop import TrainingRun, hold_out
from tests.fixtures import tiny

pytestmark = pytest.mark.slow

SPEC = Train(epochs=4, batch_rows=8, learning_rate=1e-2, checkpoint_every=3, evaluate_every=4, patience=99)


def rows(count, seed=0):
    generator = np.random.default_rng(seed)
    ids = tiny.tokenizer()(tiny.texts(count, seed)).input_ids
    logits = torch.from_numpy(generator.normal(size=(count, 3)).astype(np.float32)) * 2
    return LabelRows(ids, logits.log_softmax(-1).numpy())


def student(kind="bert"):
    return finish(tiny.model(kind), tiny.tokenizer(), None)


def start(folder, train, held_out=None, spec=SPEC, terms=SPEC.loss, key="k"):
    set_seed(0)
    who = student()
    problem = Classification(train, held_out or train, terms, who.tokenizer, spec)
    return TrainingRun("student", who.model, problem, spec, 0, Checkpoints(folder / "checkpoints", "student", key))


def gradients(run, batches):
    run.model.zero_grad()
    model = run.model
    model.eval()  # no dropout: only the batching differs
    model.train = lambda mode=True: model
    run._step(batches)
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@settings(max_examples=10)
@given(st.permutations(range(9)), st.lists(st.integers(1, 8), max_size=3, unique=True))
def test_batch_composition_padding_and_accumulation_do_not_change_the_gradient(tmp_path_factory, order, cuts):
    run = start(tmp_path_factory.mktemp("run"), rows(9), spec=SPEC.model_copy(update={"clip_norm": 1e9}))
    whole = gradients(run, [list(range(9))])
    edges = [0, *sorted(cuts), 9]
    parts = [list(order[a:b]) for a, b in itertools.pairwise(edges)]
    torch.testing.assert_close(gradients(run, parts), whole, atol=1e-6, rtol=1e-4)


def test_it_learns_and_keeps_its_best_weights(tmp_path):
    train = rows(64)
    run = start(tmp_path, train, spec=SPEC.model_copy(update={"epochs": 30}))
    kl = [scores.kl(train.teacher, predict(run.model, tiny.tokenizer(), train, SPEC))]
    fit = run.fit(tmp_path / "metrics.jsonl")
    kl.append(scores.kl(train.teacher, predict(run.model, tiny.tokenizer(), train, SPEC)))
    assert kl[1] < 0.6 * kl[0]
    assert fit.best_step <= fit.steps == 240


@pytest.mark.parametrize("stop_at", [3, 10, 24])
def test_resumed_and_unbroken_runs_agree_bit_for_bit(tmp_path, stop_at):
    train, held = rows(64), rows(16, seed=1)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = start(tmp_path / "a", train, held)
    whole.fit(tmp_path / "a" / "metrics.jsonl")

    broken = start(tmp_path / "b", train, held)
    step = broken._step

    def dies(*args):
        if broken_at["step"] == stop_at:
            raise KeyboardInterrupt
        broken_at["step"] += 1
        return step(*args)

    broken_at = {"step": 0}
    broken._step = dies
    with pytest.raises(KeyboardInterrupt):
        broken.fit(tmp_path / "b" / "metrics.jsonl")
    again = start(tmp_path / "b", train, held)
    torch.rand(17)  # whatever else used the generator
    fit = again.fit(tmp_path / "b" / "metrics.jsonl")
    assert fit.resumed_from == stop_at // 3 * 3
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name


def test_a_run_that_continues_in_another_precision_says_so(tmp_path):
    changed = []
    for attempt, precision in enumerate(["no", "no", "bf16", "bf16"]):
        run = start(tmp_path, rows(32), spec=SPEC.model_copy(update={"checkpoint_every": 1}))
        run.learner.mixed_precision = precision
        steps = itertools.chain([run._step] * 3, [dies])
        run._step = lambda batches, steps=steps: next(steps)(batches)
        with cautions.collected() as found, pytest.raises(KeyboardInterrupt):
            run.fit(tmp_path / "metrics.jsonl")
        assert int(run.checkpoints.latest().name[-6:]) == 3 * (attempt + 1)
        changed.append("precision-changed" in {one["code"] for one in found})
    assert changed == [False, False, True, True]


def dies(batches):
    raise KeyboardInterrupt


def test_another_recipe_does_not_resume(tmp_path):
    start(tmp_path, rows(32), key="one").fit(tmp_path / "metrics.jsonl")
    assert start(tmp_path, rows(32), key="two").fit(tmp_path / "metrics.jsonl").resumed_from is None


def test_a_forgotten_run_leaves_the_others_checkpoints(tmp_path):
    key = "0123456789abcdef"
    gone = (f"control-{key}-step-000003", f"control-{key}-step-000003-damaged")
    kept = (f"student-{key}-step-000003", "control-best", f"control-{key}-step-000003-copy")  # the user's own, too
    for name in (*gone, *kept):
        (tmp_path / name).mkdir()
    forget(tmp_path, "control")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "best.safetensors", "progress.json"])
def test_a_damaged_checkpoint_is_not_trusted(tmp_path, capsys, name):
    train, held = rows(32), rows(8, seed=1)
    start(tmp_path, train, held).fit(tmp_path / "metrics.jsonl")
    [checkpoint] = (tmp_path / "checkpoints").iterdir()
    (checkpoint / name).write_bytes(b"oops")
    again = start(tmp_path, train, held)
    assert again.fit(tmp_path / "metrics.jsonl").resumed_from is None
    assert "is damaged" in capsys.readouterr().err
    (tmp_path / "fresh").mkdir()
    fresh = start(tmp_path / "fresh", train, held)
    fresh.fit(tmp_path / "fresh" / "metrics.jsonl")
    for key, value in fresh.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[key]), key


def test_patience_stops_a_run_that_gets_no_better(tmp_path):
    spec = SPEC.model_copy(update={"epochs": 60, "evaluate_every": 2, "patience": 3, "learning_rate": 0.05})
    fit = start(tmp_path, rows(32), rows(16, seed=5), spec).fit(tmp_path / "metrics.jsonl")
    assert fit.stopped == "patience"
    assert fit.steps == fit.best_step + 6


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    data = rows(32)
    data.teacher[5] = np.nan
    with pytest.raises(GateFailed, match="diverged at step"):
        start(tmp_path, data, rows(8)).fit(tmp_path / "metrics.jsonl")


def test_hard_labels_stop_by_their_own_loss(tmp_path):
    data = rows(8)
    run = start(tmp_path, data, terms=(CrossEntropy(),))
    found = predict(run.model, tiny.tokenizer(), data, SPEC)
    expected = -found[np.arange(8), data.teacher.argmax(-1)].mean()
    criterion, figures = run.objective.held_out(run.model)
    assert criterion == pytest.approx(expected)
    assert figures["kl"] == pytest.approx(scores.kl(data.teacher, found))


def test_held_out_rows_are_a_seeded_share_and_leave_the_train_rows():
    train, held = hold_out(range(50), 0.1, seed=3)
    assert len(held) == 5
    assert sorted(train + held) == list(range(50))
    assert hold_out(range(50), 0.1, seed=3) == (train, held) != hold_out(range(50), 0.1, seed=4)
    assert hold_out("aab", 0.01, seed=0)[1] in ([0, 1], [2])  # never one of two answers to the same question


@pytest.mark.parametrize("kind", ["bert", "distilbert", "llama", "gemma3_text"])
def test_predictions_do_not_depend_on_the_batch(kind):
    who, data = student(kind), rows(20)
    together = predict(who.model, who.tokenizer, data, SPEC)
    alone = predict(who.model, who.tokenizer, data, SPEC.model_copy(update={"batch_rows": 1}))
    np.testing.assert_allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "distilbert", "llama", "gemma3_text"])
def test_truncated_keeps_the_chosen_layers_and_saves_as_such(kind, tmp_path):
    model = tiny.model(kind)
    last = [p.clone() for name, p in model.named_parameters() if ".1." in name]
    keep_layers(model, (1,))
    kept = [p for name, p in model.named_parameters() if ".0." in name]
    assert len(kept) == len(last) > 0
    assert all(torch.equal(a, b) for a, b in zip(kept, last, strict=True))
    model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    ids = torch.tensor([[2, 5, 6, 3]])
    torch.testing.assert_close(again(input_ids=ids).logits, model(input_ids=ids).logits)
    with pytest.raises(RecipeError, match="the model has layers 0 to 0"):
        keep_layers(model, (1,))


def test_a_view_longer_than_the_student_is_an_error():
    who = Student(tiny.model(), tiny.tokenizer(), 5)
    with pytest.raises(DataError, match="row b: the simplified view has 7 tokens, the student takes 5"):
        list(who.encode([(["a", "b"], ["who wrote", "who wrote a king book"])]))
    assert [(row, len(ids)) for row, ids in who.encode([(["a"], ["who wrote"])])] == [("a", 4)]


def test_a_student_from_a_config_has_the_labels_names_and_the_tokenizers_vocabulary(tmp_path):
    tiny.tokenizer().save_pretrained(tmp_path / "tokenizer")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    spec = {"kind": "from_config", "model_type": "bert", "config": sizes, "tokenizer": str(tmp_path / "tokenizer")}
    recipe = tiny.recipe(student=spec)
    who = implementation(recipe.student)(recipe.student, recipe, Corpus([], []))
    assert who.model.config.id2label == dict(enumerate(tiny.LABELS))
    assert who.model.config.vocab_size == tiny.VOCABULARY
    wrong = tiny.recipe(student={**spec, "config": {"hiden_size": 16}})
    with pytest.raises(RecipeError, match=r"student.config: bert has no 'hiden_size'"):
        implementation(wrong.student)(wrong.student, wrong, Corpus([], []))
