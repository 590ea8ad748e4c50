"""Training on several ranks: the curve of one, one writer, one voice, resume on any number, no wait for the dead."""

import functools
import json
import os
import shutil
import socket
import subprocess
import sys

import pytest
import yaml

from distillctl.run_dir.workspace import MANIFEST, Workspace
from tests.fixtures import forked_commands, project, tiny_generate

pytestmark = [pytest.mark.long, pytest.mark.slow]

TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")
FSDP = ("accelerate.commands.launch", "--use_fsdp", "--fsdp_version", "2", "--num_processes", "2")
FSDP += ("--main_process_port", "0", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no")
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
TRAIN = {"epochs": 3, "batch_rows": 8, "batch_tokens": 90, "accumulate": 2, "checkpoint_every": 5, "patience": 99}
"""Of tokens so few that batches of one row come up: then one rank has none."""


def start(launcher, *args, module="distillctl"):
    """The command line, on two ranks if there is a launcher."""
    command = [sys.executable, *(["-m"] if launcher else []), *launcher, "-m", module, *map(str, args)]
    environment = project.environment(**ONE_THREAD, PYTHONPATH=":".join(sys.path))
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment, check=False)


def two_ranks(port):
    """Do in a fork what torchrun does: go on as two ranks, and end with the worse of their exit codes."""
    world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    children = []
    for rank in ("0", "1"):
        child = os.fork()
        if child == 0:
            os.environ.update(world, RANK=rank, LOCAL_RANK=rank)
            return
        children.append(child)
    os._exit(max(abs(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])) for child in children))


def forked(ranks, *args):
    """The command line on so many ranks that are forks: launchers and imports take longer than tiny models do."""
    if ranks == 1:
        return project.run(*args, **ONE_THREAD)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert forked_commands.takes(project.environment(**ONE_THREAD))  # what `two_ranks` sets is lost in a new process
    return project.run(*args, prepare=functools.partial(two_ranks, port), **ONE_THREAD)


def labels(folder):
    recipe = project.make(folder, rows=120, train=TRAIN | {"learning_rate": 1e-3, "threads": 1, "control": True})
    config = json.loads((folder / "student" / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "student" / "config.json").write_text(json.dumps(config))
    return recipe


def texts(folder):
    tiny_generate.decoder(tie_word_embeddings=True).save_pretrained(folder / "teacher")
    tiny_generate.bpe_tokenizer().save_pretrained(folder / "teacher")
    with (folder / "rows.jsonl").open("w") as file:
        for text in tiny_generate.texts(70):
            file.write(json.dumps({"input": text}) + "\n")
    recipe = {
        "name": "texts",
        "task": {"kind": "generate", "max_new_tokens": 6, "metrics": ["exact"]},
        "data": {"source": "rows.jsonl", "eval_rows": 10},
        "contexts": {"full": {"template": "the old king reads {{ input }}"}},
        "teacher": {"model": "teacher", "threads": 1},
        "student": {"kind": "truncated", "model": "teacher", "layers": [1]},
        "train": TRAIN | {"learning_rate": 1e-4, "threads": 1},
    }  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Task → its folder, in which one rank has collected and trained."""
    folders = {}
    for make in (labels, texts):
        folder = folders[make.__name__] = tmp_path_factory.mktemp(make.__name__)
        recipe = make(folder)
        for stage in ("collect", "train"):
            done = project.run(stage, recipe, "--run-dir", folder / "run", **ONE_THREAD)
            assert done.returncode == 0, done.stderr
    return folders


def collected(folder, run):
    shutil.copytree(folder / "run" / "collect", run / "collect")
    return folder / "recipe.yaml", "--run-dir", run


def lines(run):
    return [json.loads(line) for line in (run / "train" / "metrics.jsonl").read_text().splitlines()]


def same_curve(run, folder):
    found, expected = lines(run), lines(folder / "run")
    assert [(line["run"], line["step"], "loss" in line) for line in found] == [
        (line["run"], line["step"], "loss" in line) for line in expected
    ]
    for line, one in zip(found, expected, strict=True):
        assert line.get("loss", 0) == pytest.approx(one.get("loss", 0), abs=1e-5), line
        assert line.get("kl", 0) == pytest.approx(one.get("kl", 0), abs=1e-4), line
    return found


def names(run):
    return sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("task", "launcher"),
    [
        pytest.param("labels", None, id="labels-ddp"),
        pytest.param("texts", TORCHRUN, id="texts-ddp"),
        pytest.param("labels", FSDP, id="labels-fsdp"),
        pytest.param("texts", FSDP, id="texts-fsdp"),
    ],
)
def test_two_ranks_give_the_curve_of_one_and_only_the_first_writes(unbroken, tmp_path, task, launcher):
    """By torchrun, by accelerate, and as forks, which the launcher's variables make ranks."""
    folder, run = unbroken[task], tmp_path / "run"
    args = collected(folder, run)
    done = start(launcher, "train", *args, "--json") if launcher else forked(2, "train", *args, "--json")
    assert done.returncode == 0, done.stderr
    same_curve(run, folder)
    told = json.loads(done.stdout)  # one object
    assert told["ranks"] == 2
    assert done.stderr.count("▸ train") == 1
    assert "Warning" not in done.stderr
    assert names(run / "train") == names(folder / "run" / "train")
    facts, expected = (Workspace(one).manifest("train").facts for one in (run, folder / "run"))
    assert facts["kl"] == pytest.approx(expected["kl"], abs=1e-4)
    assert (facts["steps"], facts["best_step"]) == (expected["steps"], expected["best_step"])


def test_what_is_fresh_is_not_done_again_and_all_ranks_end(unbroken):
    folder = unbroken["labels"]
    before = project.contents(folder / "run")
    done = start(TORCHRUN, "train", folder / "recipe.yaml", "--run-dir", folder / "run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("train: fresh") == 1
    assert project.contents(folder / "run") == before


@pytest.mark.parametrize(("task", "before", "after"), [("labels", 2, 1), ("texts", 1, 2)])
def test_another_number_of_ranks_goes_on_where_a_signal_ended_one(unbroken, tmp_path, task, before, after):
    folder, run = unbroken[task], tmp_path / "run"
    args = collected(folder, run)
    if before == 2:  # the signal comes to the second rank alone
        done = start(TORCHRUN, "signal", 7, 1, "train", *args, module="tests.fixtures.rank_fault")
    else:
        done = start((), "signal", 7, 0, "train", *args, module="tests.fixtures.rank_fault")
        assert done.returncode == 143
    assert done.returncode != 0
    assert done.stderr.count("error: interrupted") == 1
    assert not (run / "train" / MANIFEST).exists()
    again = forked(after, "train", *args, "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["resumed_from"] == 7
    same_curve(run, folder)


@pytest.mark.parametrize(("fault", "rank"), [("fail", 1), ("kill", 1)])
def test_a_rank_that_fails_ends_the_others_and_is_told_once(unbroken, tmp_path, fault, rank):
    run = tmp_path / "run"
    done = start(
        TORCHRUN, fault, 3, rank, "train", *collected(unbroken["labels"], run), module="tests.fixtures.rank_fault"
    )
    assert done.returncode != 0
    assert "forcefully exiting" not in done.stderr
    assert done.stderr.count("IndexError: list index out of range") == (fault == "fail")
    assert done.stderr.count("another rank ended") + done.stderr.count("error: interrupted") <= (fault == "kill")
    assert not (run / "train" / MANIFEST).exists()


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["collect"], "collect runs in one process; only train takes several ranks"),
        (["train", "--set", "train.epochz=3"], "train.epochz: unknown key, did you mean epochs?"),
        (["train"], "train needs collect, which is missing"),
    ],
)
def test_what_is_wrong_from_the_start_is_told_once_and_nobody_waits(unbroken, tmp_path, args, told):
    stage, *options = args
    done = start(TORCHRUN, stage, unbroken["labels"] / "recipe.yaml", "--run-dir", tmp_path / "run", *options)
    assert done.returncode != 0
    assert done.stderr.count(told) == 1
    assert "forcefully exiting" not in done.stderr
    assert done.stdout == ""
