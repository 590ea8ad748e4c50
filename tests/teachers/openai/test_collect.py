"""collect with a served teacher: the soft labels of the weights behind it, exactly once, whatever breaks on the way."""

import json
import os
import signal
import subprocess
import time
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from distillctl import pipeline
from distillctl import recipe as recipes
from distillctl.commands import dry_run
from distillctl.data import view_table
from distillctl.errors import RecipeError, UnavailableError
from distillctl.recipe import EvalSoftLabels, Text, TopK
from distillctl.run_dir.workspace import Workspace
from distillctl.soft_labels import label_shards
from distillctl.soft_labels import response_shards as text_store
from distillctl.soft_labels.eval_rows import EvalLabels
from distillctl.soft_labels.text import TextLabels
from distillctl.soft_labels.top_k import TopKLabels
from tests.fixtures import project, served_project, stub_server

pytestmark = pytest.mark.slow

FAILED = "run/collect/served/failed.jsonl"
ENTRY = 2.0**-10
"""A stored log-probability is within so much of itself."""
WRITES = {"kind": "generate", "max_new_tokens": 6, "stop": ["e"], "soft_labels": {"kind": "top_k", "k": 5}}
KNOWN = {"tokenizer": "teacher"}
MESSAGES = {"full": {"messages": [{"role": "system", "content": served_project.CONTEXT},
                                  {"role": "user", "content": "{{ input }}"}]}}  # fmt: skip


def _collect(recipe, root):
    workspace = Workspace(root)
    return workspace, pipeline.stage("collect", recipe, workspace).manifest.facts


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder with a tiny Llama, rows, and the same model as a server speaks it."""
    folder = tmp_path_factory.mktemp("weights")
    return folder, served_project.save_teacher(folder)


def _local(folder, root, **sections):
    """As the teacher whose weights are here has it."""
    recipe = served_project.recipe(folder, "http://127.0.0.1:9", teacher=KNOWN, **sections)
    tree = yaml.safe_load(recipe.path.read_text()) | {"teacher": {"model": "teacher", "threads": 1}}
    if "soft_labels" in tree["task"]:
        tree["task"]["soft_labels"]["tail_draws"] = 0
    recipe.path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return _collect(recipes.load(recipe.path), root)[0]


@pytest.fixture(scope="module")
def local_labels(weights, tmp_path_factory):
    return _local(weights[0], tmp_path_factory.mktemp("labels"))


@pytest.fixture(scope="module")
def local_texts(weights, tmp_path_factory):
    return _local(weights[0], tmp_path_factory.mktemp("texts"), task=WRITES)


# ── the same weights, the same soft labels ───────────────────────────────────────────────────────


def test_labels_are_those_of_the_teacher_behind_the_server(weights, local_labels, tmp_path):
    folder, speaker = weights
    with stub_server.serve(speaker, most_logprobs=1000) as stub:
        teacher = {"tokenizer": "teacher", "top_logprobs": 300}
        served, facts = _collect(served_project.recipe(folder, stub.url, teacher=teacher), tmp_path / "served")
    for split in ("train", "eval"):
        mine, theirs = label_shards.read(served, "full", split), label_shards.read(local_labels, "full", split)
        assert mine.ids == theirs.ids
        assert mine.seen.all()
        np.testing.assert_allclose(mine.log_probs, theirs.log_probs, atol=1e-4)
        np.testing.assert_allclose(mine.mass, theirs.mass, rtol=1e-3)
    assert facts["unseen"] == {"full": {"pairs": 0.0, "mass": 0.0}, "simplified": {"pairs": 0.0, "mass": 0.0}}
    assert facts["teacher"]["served"]["granted"]["top_logprobs"] > 280


@pytest.mark.parametrize("known", [True, False])
def test_a_label_that_is_not_shown_is_bounded_from_above(weights, local_labels, tmp_path, known):
    """And where the likeliest label is among those, the recipe is refused: nothing was measured."""
    folder, speaker = weights
    with stub_server.serve(speaker, most_logprobs=150) as stub:
        teacher = {"top_logprobs": 150} | ({"tokenizer": "teacher"} if known else {})
        with pytest.raises(RecipeError, match=r"\d+ of 40 train rows are not measured") as error:
            _collect(served_project.recipe(folder, stub.url, teacher=teacher), tmp_path / "served")
    assert "teacher.top_logprobs" in error.value.next
    parts = [label_shards._read(path) for path in (tmp_path / "served/collect/shards").glob("full-eval-*")]
    theirs = label_shards.read(local_labels, "full", "eval")
    mine = label_shards.in_order(parts, theirs.ids)
    assert not mine.seen.all()
    assert mine.seen.any() or not known
    assert (mine.log_probs >= theirs.log_probs - 1e-4).all()
    if known:
        np.testing.assert_allclose(mine.log_probs[mine.seen], theirs.log_probs[mine.seen], atol=1e-4)
    np.testing.assert_allclose(mine.mass, np.where(mine.seen, np.exp(mine.log_probs), 0).sum(-1), rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("shows_end", [True, False])
@pytest.mark.parametrize("api", ["chat", "completions"])
def test_texts_and_their_distributions_are_those_of_the_teacher_behind_the_server(
    weights, local_texts, tmp_path, api, shows_end
):
    folder, speaker = weights
    with stub_server.serve(speaker, shows_end=shows_end) as stub:
        teacher = {"tokenizer": "teacher", "api": api}
        served, facts = _collect(
            served_project.recipe(folder, stub.url, teacher=teacher, task=WRITES), tmp_path / "one"
        )
    kept = {"train": TopKLabels(TopK(k=5, tail_draws=0)), "eval": EvalLabels(EvalSoftLabels())}
    for split in ("train", "eval"):
        mine = text_store.read(served, "full", split, kept["train"])
        theirs = text_store.read(local_texts, "full", split, kept[split])  # more is kept of a local teacher's eval rows
        assert mine.id == theirs.id
        for row in range(len(mine.id)):
            ids, cut = mine.token_ids[row].tolist(), bool(mine.cut[row])
            expected = theirs.token_ids[row].tolist()
            seen = cut or mine.labels["log_tail"][row][-1] > -np.inf  # the token that ended it, too
            whole = len(ids) if seen else len(ids) - 1
            assert seen or not shows_end
            assert ids[:whole] == expected[:whole]
            assert (mine.text[row], cut) == (theirs.text[row], bool(theirs.cut[row]))
            for place in range(whole):
                got, want = (dict(zip(one.labels["ids"][row][place].tolist(), one.labels["log_probs"][row][place],
                                      strict=True)) for one in (mine, theirs))  # fmt: skip
                shared = [token for token in want if token in got]  # a byte that is no character has no text of its own
                assert len(shared) >= min(len(got), len(want)) - 2
                for token in shared:
                    assert got[token] == pytest.approx(want[token], rel=2 * ENTRY, abs=1e-4)
            if not seen:  # how the response ended was seen, how likely that was was not
                assert mine.labels["log_probs"][row][-1].tolist() == [0.0]
                assert mine.labels["log_tail"][row][-1] == -np.inf
    assert facts["necessity"] is None
    assert "context_kl" not in pq.read_schema(next(served.folder("collect").glob("shards/simplified-*"))).names


# ── other ways to ask ────────────────────────────────────────────────────────────────────────────


def test_a_chat_is_asked_for_its_first_token(tmp_path):
    with stub_server.serve() as stub:
        recipe = served_project.recipe(
            tmp_path, stub.url, teacher={"api": "chat"}, task={"labels": ["river", "king", "city"]}, contexts=MESSAGES
        )
        workspace, facts = _collect(recipe, tmp_path / "run")
        assert {body["max_tokens"] for body in stub.bodies} == {1}
        roles = Counter(tuple(message["role"] for message in body["messages"]) for body in stub.bodies)
        assert roles["system", "user"] == 60
        assert label_shards.read(workspace, "full", "eval").seen.any()
    assert facts["context_text"].startswith("system\nthe old king")


@pytest.mark.parametrize("known", [True, False])
def test_labels_that_begin_alike_cannot_be_asked_of_a_chat(weights, tmp_path, known):
    folder, speaker = weights
    with stub_server.serve(speaker if known else stub_server.Hashed(), most_logprobs=1000) as stub:
        recipe = served_project.recipe(
            folder if known else tmp_path, stub.url,
            teacher={"api": "chat", "top_logprobs": 300, **({"tokenizer": "teacher"} if known else {})},
            task={"labels": {"river": "old king", "king": "old city", "city": "sea"}},
        )  # fmt: skip
        with pytest.raises(RecipeError, match=r"(river and king|king and river) begin with the same token") as error:
            _collect(recipe, tmp_path / "run")
    assert error.value.exit_code == 3


def test_where_the_model_would_end_its_probabilities_are_had_all_the_same(tmp_path):
    speaker = stub_server.Hashed(end=5.3)  # nearly always the likeliest, and shown by no server as the first token
    task = {"labels": ["river", "king", "city"]}
    with stub_server.serve(speaker) as stub:
        workspace, _ = _collect(
            served_project.recipe(tmp_path, stub.url, task=task, count=30, evaluated=10), tmp_path / "run"
        )
        drawn = [body for body in stub.bodies if body["temperature"]]
    found = label_shards.read(workspace, "full", "train")
    assert len(drawn) > len(found.ids) / 2
    for row, text in enumerate(view_table.read(workspace.folder("collect") / "views.parquet", "train").full):
        expected = speaker.next(speaker.encode(text))
        for k, word in enumerate(task["labels"]):
            if found.seen[row, k]:
                token = speaker.tokens.index(f" {word}".encode())
                assert found.log_probs[row, k] == pytest.approx(expected[token], abs=1e-4)
    assert found.seen.any()


def test_texts_without_a_tokenizer_are_kept_as_texts(tmp_path):
    task = {"kind": "generate", "max_new_tokens": 6, "soft_labels": {"kind": "text"}}
    with stub_server.serve() as stub:
        recipe = served_project.recipe(
            tmp_path, stub.url, teacher={"api": "chat"}, task=task, train={"loss": [{"kind": "cross_entropy"}]}
        )
        workspace, facts = _collect(recipe, tmp_path / "run")
        assert not any("logprobs" in body for body in stub.bodies)
    found = text_store.read(workspace, "full", "train", TextLabels(Text()))
    assert all(found.text)
    assert not any(map(len, found.token_ids))
    assert (facts["teacher_tokenizer"], facts["responses"]["tokens"], facts["responses"]["count"]) == (None, None, 60)


@pytest.mark.parametrize("samples", [True, False])
def test_several_responses_are_drawn_for_each_train_row(tmp_path, samples):
    responses = {"kind": "sampling", "n": 3, "temperature": 0.7, "top_p": 0.9}
    task = {"kind": "generate", "max_new_tokens": 4, "responses": responses, "soft_labels": {"kind": "text"}}
    with stub_server.serve(samples=samples) as stub:
        recipe = served_project.recipe(tmp_path, stub.url, task=task, train={"loss": [{"kind": "cross_entropy"}]})
        workspace, _ = _collect(recipe, tmp_path / "run")
        drawn = [body for body in stub.bodies if body["temperature"] == 0.7]
        assert len(drawn) == 40 * (1 if samples else 3)
        assert len({body["seed"] for body in drawn}) == len(drawn)
    found = text_store.read(workspace, "full", "train", TextLabels(Text()))
    assert Counter(found.sample) == {0: 40, 1: 40, 2: 40}
    assert len(set(found.text)) > 60
    assert Counter(text_store.read(workspace, "full", "eval", TextLabels(Text())).sample) == {0: 20}


# ── exactly once ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.long
@pytest.mark.slow
def test_a_faulty_server_loses_no_row_and_doubles_none(tmp_path):
    """18 kinds of failure at 20 %, over 1,000 rows of which 100 are asked under the floor's context, too."""
    with stub_server.serve(fault_rate=0.2, hang=20.0) as stub:
        recipe = served_project.recipe(
            tmp_path, stub.url, count=1000, evaluated=100, task={"labels": ["river", "king", "city"]},
            teacher={"concurrency": 32, "max_retries": 30, "timeout_seconds": 4.0}, shard_rows=256,
        )  # fmt: skip
        workspace, facts = _collect(recipe, tmp_path / "run")
        assert all(stub.broken[failure] for failure in stub_server.FAULTS)
        kinds = facts["teacher"]["served"]["faults"]
        assert sum(kinds.values()) >= sum(stub.broken.values())
    found = [label_shards.read(workspace, "full", split).ids for split in ("train", "eval")]
    assert [len(ids) for ids in found] == [900, 100]
    assert len(set(found[0] + found[1])) == 1000
    assert label_shards.read(workspace, "simplified", "eval").ids == found[1]
    with stub_server.serve() as calm:
        quiet = served_project.recipe(tmp_path, calm.url, task={"labels": ["river", "king", "city"]}, evaluated=100)
        other, _ = _collect(quiet, tmp_path / "calm")
    for split in ("train", "eval"):  # and no answer is another one than without faults
        np.testing.assert_array_equal(
            label_shards.read(workspace, "full", split).log_probs, label_shards.read(other, "full", split).log_probs
        )


def test_rows_that_cannot_be_answered_are_told_and_alone_asked_again(tmp_path):
    with stub_server.serve() as stub:
        recipe = served_project.recipe(tmp_path, stub.url, teacher={"max_retries": 1})
        stub.refuses = "king the the"
        with pytest.raises(UnavailableError, match=r"\d+ of 80 rows could not be answered: \d+ × HTTP 500") as error:
            _collect(recipe, tmp_path / "run")
        assert "distillctl collect" in error.value.next
        failed = [json.loads(line) for line in (tmp_path / FAILED).read_text().splitlines()]
        assert {one["error"] for one in failed} == {"HTTP 500"}
        assert set(failed[0]) == {"id", "split", "context", "error", "detail"}
        asked, stub.refuses = len(stub.bodies), None
        _, facts = _collect(recipe, tmp_path / "run")
        again = {body["prompt"] for body in stub.bodies[asked:]}
        assert all("king the the" in prompt for prompt in again)
        assert facts["scored_rows"] + facts["reused_rows"] == 80
        assert not (tmp_path / FAILED).exists()


def test_a_budget_stops_the_stage_and_a_higher_one_goes_on(tmp_path):
    with stub_server.serve() as stub:
        prices = {"prices": {"input": 1.0, "output": 2.0}}
        recipe = served_project.recipe(tmp_path, stub.url, teacher={**prices, "max_cost": 0.002})
        with pytest.raises(UnavailableError, match="max_cost") as error:
            _collect(recipe, tmp_path / "run")
        assert (error.value.exit_code, "distillctl collect" in error.value.next) == (5, True)
        assert Workspace(tmp_path / "run").manifest("collect") is None
        kept = dict(stub.answered)
        more = served_project.recipe(tmp_path, stub.url, teacher={**prices, "max_cost": 1.0})
        workspace, facts = _collect(more, tmp_path / "run")
        assert all(count == 1 for count in stub.answered.values())
        assert kept.items() <= stub.answered.items()
        spent = facts["teacher"]["served"]
        assert spent["cost"] == pytest.approx((spent["tokens"]["read"] + 2 * spent["tokens"]["written"]) / 1e6)
        cheaper = served_project.recipe(tmp_path, stub.url, teacher={"concurrency": 3})
        states = {one.stage: one.state for one in pipeline.status(cheaper, workspace)}
        assert states["collect"] == "fresh"  # what answers cost and how fast they come makes nothing stale


@pytest.mark.slow
def test_after_a_kill_nothing_that_was_answered_is_paid_for_again(tmp_path):
    with stub_server.serve() as stub:
        recipe = served_project.recipe(tmp_path, stub.url, count=200, teacher={"concurrency": 4})
        command = project.command("collect", recipe.path, "--run-dir", tmp_path / "run")
        for goal in (40, 120):
            process = subprocess.Popen(command, env=project.environment(), stderr=subprocess.DEVNULL)
            while sum(stub.answered.values()) < goal and process.poll() is None:
                time.sleep(0.01)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        workspace, _ = _collect(recipe, tmp_path / "run")
        assert len(label_shards.read(workspace, "full", "train").ids) == 180
        twice = sum(count - 1 for count in stub.answered.values())
        assert twice <= 2 * 4  # answers that were under way when a kill came


def test_a_changed_byte_in_the_servers_answers_is_noticed_and_never_used(tmp_path):
    with stub_server.serve() as stub:
        recipe = served_project.recipe(tmp_path, stub.url)
        workspace, _ = _collect(recipe, tmp_path / "run")
        folder, fingerprint = workspace.folder("collect"), workspace.manifest("collect").fingerprint
        assert sorted(workspace.manifest("collect").keeps) == ["served/answers.jsonl", "served/grants.json"]
        for name, asked in (("answers.jsonl", 1), ("grants.json", 0)):
            path, raw = folder / "served" / name, bytearray((folder / "served" / name).read_bytes())
            at = raw.index(b"-0.") + 3 if name == "answers.jsonl" else raw.index(b'"shown": ') + 9
            raw[at] = raw[at] ^ 1  # another digit: as good a log-probability, as good a count
            path.write_bytes(raw)
            [state] = [one for one in pipeline.status(recipe, workspace) if one.stage == "collect"]
            assert (state.state, state.why[0].partition(" ")[0]) == ("damaged", f"collect/served/{name}")
            for shard in (folder / "shards").iterdir():  # all is asked again that the cache has not
                shard.unlink()
            before = sum(stub.answered.values())
            _collect(recipe, workspace.root)
            assert workspace.manifest("collect").fingerprint == fingerprint
            greetings = 1 if name == "grants.json" else 0
            assert sum(stub.answered.values()) - before <= asked + greetings
        assert all(one.state == "fresh" for one in pipeline.status(recipe, workspace) if one.stage == "collect")


# ── the key, and what needs none ─────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_the_key_is_nowhere_but_in_the_request(tmp_path):
    secret = "sk-very-secret-0123456789"
    with stub_server.serve(key=secret, echoes=True, fault_rate=0.2, faults=("500", "bad json")) as stub:
        recipe = served_project.recipe(tmp_path, stub.url, teacher={"api_key_env": "SOME_KEY"})
        run = tmp_path / "run"
        said = [
            project.run(*arguments, "--run-dir", run, SOME_KEY=key, OPENAI_LOG="debug")
            for key in (secret, f"{secret}-wrong")
            for arguments in (("collect", recipe.path, "--force", "--json", "-v"), ("status", recipe.path, "--json"))
        ]
        assert [one.returncode for one in said] == [0, 0, 5, 0]
    written = b"".join(path.read_bytes() for path in run.rglob("*") if path.is_file())
    written += "".join(one.stdout + one.stderr for one in said).encode()
    assert len(written) > 10_000
    assert secret.encode() not in written


@pytest.mark.parametrize(
    ("teacher", "told"),
    [
        ({"base_url": "https://me:secret@example.org/v1"}, "base_url"),
        ({"base_url": "https://example.org/v1?key=secret"}, "base_url"),
        ({"base_url": "example.org"}, "base_url"),
        ({"base_url": "http://example.org/v1"}, "api_key_env: null"),
        ({"api_key_env": "sk-secret!"}, "environment variable"),
        ({"max_cost": 1.0}, "prices"),
        ({"tokens": 1}, "unknown key"),
    ],
)
def test_a_teacher_that_cannot_be_asked_is_refused(tmp_path, teacher, told):
    with pytest.raises(RecipeError, match=told) as error:
        served_project.recipe(tmp_path, "http://127.0.0.1:9/v1", teacher=teacher)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"task": WRITES}, "teacher.tokenizer"),
        ({"task": WRITES | {"soft_labels": {"kind": "dense"}}}, "whole distributions"),
        ({"task": WRITES | {"soft_labels": {"kind": "sampled"}}}, "whole distributions"),
        (
            {"task": WRITES | {"soft_labels": {"kind": "top_k", "tail_draws": 5}}, "teacher": {"tokenizer": "t"}},
            "use 0",
        ),
        ({"task": WRITES | {"soft_labels": {"kind": "top_k", "k": 50}}, "teacher": {"tokenizer": "t"}}, "top_logprobs"),
        ({"task": WRITES | {"responses": {"kind": "given"}}, "teacher": {"tokenizer": "t"}}, "given"),
        ({"contexts": MESSAGES}, "teacher.api: chat"),
        ({"task": {"answer_prefix": " "}, "teacher": {"api": "chat"}}, "answer_prefix"),
    ],
)
def test_what_no_server_gives_is_refused(tmp_path, sections, told):
    with pytest.raises(RecipeError, match=told):
        served_project.recipe(tmp_path, "http://127.0.0.1:9/v1", **sections)


def test_a_dry_run_says_what_it_would_cost_and_asks_nobody(tmp_path):
    with stub_server.serve() as stub:
        recipe = served_project.recipe(tmp_path, stub.url, teacher={"prices": {"input": 1e6, "output": 1e6}})
        found = dry_run.plan(recipe, Workspace(tmp_path / "run"), ["collect"])["collect"]["served"]
        assert stub.bodies == []
    assert (found["requests"], found["tokens_written"]) == (80, 80)
    assert found["cost"] == pytest.approx(found["tokens_read"] + 80)


def test_what_needs_no_server_imports_neither_torch_nor_the_client(tmp_path):
    recipe = served_project.recipe(tmp_path, "http://127.0.0.1:9/v1")
    code = (
        "import sys; from distillctl.cli import main\n"
        "try: main()\n"
        "finally: assert not {'torch', 'openai'} & set(sys.modules), 'imported'"
    )
    for words in (["status", str(recipe.path)], ["collect", str(recipe.path), "--dry-run"]):
        done = subprocess.run(
            [project.command()[0], "-c", code, *words], capture_output=True, text=True,
            env=project.environment(), check=False,
        )  # fmt: skip
        assert (done.returncode, "imported" in done.stderr) == (0, False), done.stderr
