"""Where a user would meet each hostile file, and the commands that read it there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from distillctl.errors import DistillctlError
from tests.fixtures import manifests

CORPUS = Path(__file__).parent / "corpus"
ON_RUN = ("recipe.yaml", "--run-dir", "run")
DRY = ("run", *ON_RUN, "--dry-run")
COLLECT = ("collect", *ON_RUN)
STAGES = ("collect", "train", "export", "quantize", "bench", "report", "bundle")

Command = tuple[str, ...]


@dataclass(frozen=True)
class Case:
    """A hostile file."""

    path: Path

    @property
    def format(self) -> str:
        return self.path.parent.name

    @property
    def name(self) -> str:
        return f"{self.format}/{self.path.name}"

    @property
    def is_odd(self) -> bool:
        """It has to be taken."""
        return "-ok-" in self.path.name

    @property
    def parts(self) -> list[str]:
        """NUMBER, and the words of WHAT."""
        return self.path.name.split(".")[0].split("-")


def all_cases() -> list[Case]:
    return [Case(path) for path in sorted(CORPUS.glob("*/*")) if path.is_file()]


def place(case: Case, base: Path, folder: Path) -> list[tuple[Command, ...]]:
    """Lay out ``folder``: work/ with a project and the file in it, and what must not be touched. Returns what to run:
    alternatives are run one after the other, and each must end well."""
    for name, secret in (("outside", "secret.txt"), ("outside", "weights.bin"), ("home", ".netrc")):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / secret).write_bytes(b"\0" * 4096)
    for name in ("tmp", "cache"):
        (folder / name).mkdir()
    kind = "texts" if case.format == "answers" else "labels"
    shutil.copytree(base / kind, folder / "work", symlinks=True)
    return _PLACES[case.format](case.path, folder / "work")


# ── what the user writes ─────────────────────────────────────────────────────────────────────────


def _recipe(file: Path, work: Path) -> list[Command]:
    shutil.copyfile(file, work / "recipe.yaml")
    return [("status", *ON_RUN), ("run", "recipe.yaml", "--dry-run")]


def _trust(file: Path, work: Path) -> list[Command]:
    """A recipe that wants what is not its own. What may be taken is only planned: it would look for its server."""
    shutil.copyfile(file, work / "recipe.yaml")
    rows = (work / "rows.jsonl").read_text().splitlines()
    if "labels" in file.name:  # no row has a reference to one of them
        texts = [{"input": json.loads(row)["input"]} for row in rows]
        (work / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    elsewhere = work.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "notes.log").write_text("".join(f"what nobody else should read, {n}\n" for n in range(40)))
    (work / "linked.log").symlink_to(elsewhere / "notes.log")
    (work / "linked").symlink_to(elsewhere)
    if "-ok-" in file.name:
        return [DRY]
    return [COLLECT, ("run", *ON_RUN, "--force")]


def _override(file: Path, work: Path) -> list[Command]:
    """What follows --set; a stranger's shell script or CI file has it."""
    text = file.read_bytes().decode("utf-8", "surrogateescape").replace("\0", "\\0")
    return [("status", *ON_RUN, "--set", text), (*DRY, "--set", text)]


def _template(file: Path, work: Path) -> list[Command]:
    shown = b"\n{{ input }}"  # a context that shows nothing of the row is refused, whatever is in it
    (work / "template.jinja").write_bytes(file.read_bytes() + shown)
    return [(*DRY, "--set", "contexts.full={template_file: template.jinja, examples: {rows: [{input: a, answer: b}]}}")]


def _data(file: Path, work: Path) -> list[Command]:
    suffixes = "".join(file.suffixes)
    shutil.copyfile(file, work / f"hostile{suffixes}")
    sets = [f"data.source=hostile{suffixes}", "data.eval_rows=1", "data.id=null"]
    if ".log" in suffixes:
        sets += ["data.format=lines", "data.pattern='(?P<reference>\\w+): (?P<input>.*)'"]
    if ".po" in suffixes:
        sets += [
            "data.format=gettext",
            "data.language=fr",
            "task={kind: generate, max_new_tokens: 16}",
            "student.model=student",
        ]
    if "-utf16" in file.name:
        sets += ["data.encoding=utf-16"]
    return [(*DRY, *[word for one in sets for word in ("--set", one)])]


def _gguf(file: Path, work: Path) -> list[Command]:
    shutil.copyfile(file, work / "teacher.gguf")
    teacher = ("--set", "teacher.model=teacher.gguf")
    return [(*DRY, *teacher), (*COLLECT, *teacher)]


def _model(file: Path, work: Path) -> list[Command]:
    """A file of the teacher's folder, by the last words of its name."""
    name = {"config": "config.json", "tokenizer": "tokenizer.json", "named": "tokenizer_config.json",
            "weights": "model.safetensors", "index": "model.safetensors.index.json", "pickle": "pytorch_model.bin",
            "chat": "chat_template.jinja"}[file.name.split("-")[1]]  # fmt: skip
    if name in ("model.safetensors.index.json", "pytorch_model.bin"):
        (work / "teacher" / "model.safetensors").unlink()
    shutil.copyfile(file, work / "teacher" / name)
    chat = ("--set", "contexts.full={messages: [{role: user, content: '{{ input }}'}]}")
    return [DRY, (*COLLECT, *(chat if name == "chat_template.jinja" else ()))]


# ── what lies in a run directory ─────────────────────────────────────────────────────────────────


def sign(work: Path, stage: str, name: str) -> None:
    """The stage's manifest says of the file what it is now: whoever can put it there can do that too."""
    path, file = work / "run" / stage / "manifest.json", work / "run" / stage / name
    manifest = json.loads(path.read_text())
    manifest["outputs"][name] = {
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "bytes": file.stat().st_size
    }  # fmt: skip
    manifests.write(path, manifest)
    _follow(work, stage)


def _follow(work: Path, changed: str) -> None:
    """The stages that read a changed one are made to have read it as it is."""
    from distillctl.run_dir.workspace import Workspace

    for reader in STAGES[STAGES.index(changed) + 1 :]:
        path = work / "run" / reader / "manifest.json"
        if path.exists():
            manifest = json.loads(path.read_text())
            for stage in manifest["inputs"]:
                if stage in STAGES and (found := Workspace(work / "run").manifest(stage)):
                    manifest["inputs"][stage] = found.fingerprint
            manifests.write(path, manifest)


def _put(file: Path, work: Path, stage: str, name: str) -> None:
    shutil.copyfile(file, work / "run" / stage / name)
    sign(work, stage, name)


def _undone(work: Path, *stages: str) -> None:
    for stage in stages:
        (work / "run" / stage / "manifest.json").unlink(missing_ok=True)


def _shard(file: Path, work: Path) -> list[Command]:
    """Read by train as one that the manifest names, and by collect as one that is there already."""
    shard = sorted((work / "run" / "collect" / "shards").glob("full-train-*"))[0]
    _put(file, work, "collect", f"shards/{shard.name}")
    _undone(work, "train")
    return [("train", *ON_RUN), (*COLLECT, "--set", "seed=1")]


def _answers(file: Path, work: Path) -> list[Command]:
    """As `_shard`, of a teacher that writes; a seal is put on, for whoever can write the file can do that too."""
    return _shard(file, work)[:1]


def _table(file: Path, work: Path) -> list[Command]:
    """views.parquet, train's or quantize's eval.parquet, bench's samples."""
    which = file.name.split("-")[1]
    stage, name, command = {
        "views": ("collect", "views.parquet", "train"),
        "eval": ("train", "eval.parquet", "quantize"),
        "deployed": ("quantize", "eval.parquet", "report"),
        "samples": ("bench", "samples/deployed.parquet", "report"),
    }[which]
    _put(file, work, stage, name)
    _undone(work, command)
    return [(command, *ON_RUN)]


def _graph(file: Path, work: Path) -> list[Command]:
    """The exported graph, read by quantize; weights of its own beside it, and links that lead out."""
    export = work / "run" / "export"
    (export / "beside.bin").write_bytes(b"\0" * 64)
    if "link" in file.name:
        (export / "link.bin").symlink_to(work.parent / "outside" / "weights.bin")
        (export / "folder").symlink_to(work.parent / "outside")
    _put(file, work, "export", "model.onnx")
    _undone(work, "quantize")
    return [("quantize", *ON_RUN)]


def _genai(file: Path, work: Path) -> list[Command]:
    """genai_config.json beside the exported graph."""
    export = work / "run" / "export"
    if "link" in file.name:
        (export / "link.bin").symlink_to(work.parent / "outside" / "weights.bin")
    _put(file, work, "export", "genai_config.json")
    _undone(work, "quantize")
    return [("quantize", *ON_RUN)]


def _bundle(file: Path, work: Path) -> list[Command]:
    shutil.copyfile(file, work / "hostile.zip")
    return [("bundle", "verify", "hostile.zip")]


def _listing(file: Path, work: Path) -> list[Command]:
    """bundle.json of a folder."""
    (work / "bundle").mkdir()
    (work / "bundle" / "model.onnx").write_bytes(b"\x08\x0a")
    shutil.copyfile(file, work / "bundle" / "bundle.json")
    return [("bundle", "verify", "bundle")]


def _manifest(file: Path, work: Path) -> list[Command]:
    """NUMBER-STAGE-WHAT.json, seen by status, by the stage after, and by the stage itself."""
    stage = file.name.split("-")[1]
    if stage == "ok":
        stage = file.name.split("-")[2]
    path = work / "run" / stage / "manifest.json"
    whole = json.loads(path.read_text())
    text = file.read_bytes()
    if b"@WHOLE@" in text:  # members of the manifest that is there, to spare each file the rest
        members = {key: value for key, value in whole.items() if f'"{key}":'.encode() not in text and key != "checksum"}
        text = text.replace(b"@WHOLE@", json.dumps(members)[1:-1].encode())
    path.write_bytes(text)
    after = {"collect": "train", "train": "quantize", "export": "quantize"}.get(stage, "report")
    _undone(work, after)
    with contextlib.suppress(DistillctlError, ValueError, RecursionError):
        _follow(work, stage)
    return [("status", *ON_RUN), (after, *ON_RUN)]


def _device(file: Path, work: Path) -> list[Command]:
    """A device's results, read by report."""
    folder = work / "run" / "devices"
    folder.mkdir()
    shutil.copyfile(file, folder / "0001.json")
    manifest = json.loads((work / "run" / "bench" / "manifest.json").read_text())
    data = (folder / "0001.json").read_bytes()
    outputs = {"0001.json": {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}}
    manifests.write(folder / "manifest.json", {**manifest, "stage": "devices", "outputs": outputs, "inputs": {}})
    _undone(work, "report")
    return [("report", *ON_RUN)]


def _checkpoint(file: Path, work: Path) -> list[Command]:
    """progress.json, or a file that it vouches for, read by a train that resumes."""
    [folder] = (work / "run" / "train" / "checkpoints").glob("student-*")
    if file.suffix == ".json":
        shutil.copyfile(file, folder / "progress.json")
    else:
        name = f"{file.name.split('-')[1]}.safetensors"
        shutil.copyfile(file, folder / name)
        progress = json.loads((folder / "progress.json").read_text())
        progress["files"][name] = hashlib.sha256(file.read_bytes()).hexdigest()
        manifests.write(folder / "progress.json", progress)
    _undone(work, "train")
    return [("train", *ON_RUN)]


def _metrics(file: Path, work: Path) -> list[Command]:
    """metrics.jsonl, read by the report's curves, and by a train that goes on."""
    _put(file, work, "train", "metrics.jsonl")
    _undone(work, "report")
    return [("report", *ON_RUN), ("train", *ON_RUN, "--force")]


# ── what lies where distillctl keeps its own ─────────────────────────────────────────────────────

NAMES = {"marker": ".distillctl-run.json", "lock": ".lock", "recipe": "recipe.lock.yaml",
         "manifest": "train/manifest.json"}  # fmt: skip
"""First word of WHAT → the name that a stranger's file gets."""


def _stranger(file: Path, work: Path) -> list[Command]:
    """In a folder of somebody else's, which is no run directory for it."""
    mine = work / "mine"
    for name in ("train/.weights.1.tmp", ".notes.tmp", "shards/full-train-00000-0123456789abcdef.parquet", "notes.txt"):
        (mine / name).parent.mkdir(parents=True, exist_ok=True)
        (mine / name).write_text("mine")
    shutil.copyfile(file, mine / NAMES[file.name.split("-")[1].split(".")[0]])
    return [("collect", "recipe.yaml", "--run-dir", "mine", "--force"), ("train", "recipe.yaml", "--run-dir", "mine")]


def _journal(file: Path, work: Path) -> list[Command]:
    """The answers that a server has given, opened by a collect that goes on."""
    (work / "run" / "collect" / "served").mkdir()
    shutil.copyfile(file, work / "run" / "collect" / "served" / "answers.jsonl")
    return [("journal", "run/collect/served/answers.jsonl")] * 2


def journal(path: Path) -> int:
    """3 where lines are set aside; what is left is taken the next time, and not a byte is lost."""
    from distillctl import console
    from distillctl.errors import DataError
    from distillctl.teachers.openai.response_cache import DAMAGED, ResponseCache

    aside, before = path.with_name(DAMAGED), path.read_bytes()
    is_first = not aside.exists()
    kept = ResponseCache(path)
    for key in ("k", "l"):
        kept.get(key)
    kept.close()
    both = path.read_bytes() + (aside.read_bytes() if aside.exists() else b"")
    if is_first and (len(both) != len(before) or sorted(both) != sorted(before)):
        raise RuntimeError("bytes were lost")
    if aside.exists() and is_first:
        console.error(DataError("lines were set aside"))
        return 3
    return 0


def _cache(file: Path, work: Path) -> list[Command]:
    """The record of a folder in the user's cache."""
    folder = work.parent / "cache" / "distillctl" / "gguf" / "0"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    shutil.copyfile(file, folder / ".files.json")
    return [("cache", str(folder))]


def cache(path: Path) -> int:
    """3 where the folder is not used."""
    from distillctl import console
    from distillctl.errors import DataError
    from distillctl.models import cached_folders

    if cached_folders.is_whole(path):
        return 0
    console.error(DataError("not used"))
    return 3


def _message(file: Path, work: Path) -> list[Command]:
    shutil.copyfile(file, work / "message.json")
    return [("message", "message.json")]


def message(path: Path) -> int:
    """What bench --serve makes of a page's message: 3 where it refuses it."""
    from pydantic import ValidationError

    from distillctl import console
    from distillctl.errors import DataError
    from distillctl.phone.messages import Device, Results

    model = Device if b"user_agent" in path.read_bytes() else Results
    try:
        model.model_validate_json(path.read_bytes())
    except ValidationError:
        console.error(DataError("refused"))
        return 3
    return 0


def _served(file: Path, work: Path) -> list[Command]:
    shutil.copyfile(file, work / "answer.json")
    return [("served", "answer.json")]


def served(path: Path) -> int:
    """What collect makes of a server's answer: 3 where it is asked again."""
    from distillctl import console
    from distillctl.errors import DataError
    from distillctl.teachers.openai.protocol import Malformed, Request, parse

    body = path.read_bytes()
    try:
        parse(body, Request("completions" if b'"text"' in body else "chat", "m", "who", 8, top_logprobs=1))
    except Malformed as error:
        console.error(DataError(str(error)))
        return 3
    return 0


def _card(file: Path, work: Path) -> list[Command]:
    """README.md of the teacher's folder."""
    shutil.copyfile(file, work / "teacher" / "README.md")
    return [("card", "recipe.yaml")]


def licence(path: Path) -> int:
    """What export quotes from a model's card: 3 where it states no licence."""
    from distillctl import console, recipe
    from distillctl.bundle import model_card
    from distillctl.errors import DataError

    if model_card._licence(recipe.load(path), "teacher", None) == "not stated":
        console.error(DataError("no licence is stated"))
        return 3
    return 0


IN_PLACE = {"message": message, "served": served, "journal": journal, "cache": cache, "card": licence}
"""What is no command of the command line."""

_PLACES: dict[str, Callable[[Path, Path], list[Command]]] = {
    "recipes": _recipe,
    "trust": _trust,
    "overrides": _override,
    "templates": _template,
    "data": _data,
    "parquet": _data,
    "models": _model,
    "gguf": _gguf,
    "shards": _shard,
    "answers": _answers,
    "tables": _table,
    "onnx": _graph,
    "genai": _genai,
    "cards": _card,
    "bundles": _bundle,
    "listings": _listing,
    "manifests": _manifest,
    "devices": _device,
    "checkpoints": _checkpoint,
    "metrics": _metrics,
    "messages": _message,
    "served": _served,
    "journals": _journal,
    "strangers": _stranger,
    "caches": _cache,
}


def formats() -> Iterator[str]:
    yield from _PLACES
