"""The stages in order, what each depends on, and whether it is fresh. Freshness compares fingerprints, never times."""

from __future__ import annotations

import contextlib
import importlib
import shlex
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from distillctl import cautions, console, interrupts, ranks
from distillctl.bundle import figures
from distillctl.data import examples, responses, split_checks, views
from distillctl.errors import GateFailed, UpstreamError
from distillctl.models import hub, model_source
from distillctl.recipe import OpenAITeacher, Recipe, dump, flatten
from distillctl.run_dir import attempts
from distillctl.run_dir.workspace import Manifest, StageOutput, Workspace, write_text
from distillctl.students import preflight
from distillctl.teachers import engines
from distillctl.trust import approvals, recipe_access


@dataclass(frozen=True)
class Stage:
    """One stage: the recipe's keys it reads, the stages it reads, and the files it reads besides."""

    name: str
    keys: tuple[str, ...]
    upstream: tuple[str, ...]
    optional: tuple[str, ...] = ()
    """What is read where it is there, and makes the stage stale when it changes."""
    files: Callable[[Recipe], dict[str, str]] = lambda recipe: {}
    """Recipe key → fingerprint of what it names."""
    check: Callable[[Recipe, Workspace], None] = lambda recipe, workspace: None
    """What recipe, data and upstream manifests alone can show to be wrong, found before torch is imported."""
    soft_inputs: Callable[[Workspace], dict[str, str]] = lambda workspace: {}
    """Stage → fingerprint of what it takes where it is there, and does without otherwise."""
    keeps: tuple[str, ...] = ()
    """Files in its folder that only its own next run reads, verified as its outputs are."""
    command: tuple[str, ...] = ()
    """The command that makes it, and its options behind the recipe; by default its name."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Key of the recipe → the option that turns it on for one command. What was made with it is fresh without it."""
    gate: str | None = None
    """A stage above whose failed gate leaves something to do here, without it and those after it."""
    on_request: bool = False
    """`run` does not make it, and `status` shows it only once it was made."""
    loads_models: bool = True
    """Teacher or student, and so code that comes with them where the user allows it."""

    def run(self, recipe: Recipe, workspace: Workspace) -> StageOutput:
        """Do it. Only now is torch imported."""
        if ranks.count() > 1 and ranks.is_first():
            _group().broadcast(_WORK)
        outcome: StageOutput = importlib.import_module(f"distillctl.stages.{self.name}").run(recipe, workspace)
        return outcome


def _teacher_files(recipe: Recipe) -> dict[str, str]:
    return {"teacher.model": model_source.teacher(recipe).fingerprint()}


def _collect_files(recipe: Recipe) -> dict[str, str]:
    student = _student_files(recipe) if recipe.contexts.truncate == "input" else {}
    return examples.fingerprints(recipe) | _teacher_files(recipe) | student


def _check_data(recipe: Recipe, workspace: Workspace) -> None:
    engines.check_installed(recipe.collect)
    if isinstance(recipe.teacher, OpenAITeacher):
        approvals.check_sending(recipe.teacher, recipe_access.outside(recipe))
    dataset = examples.load(recipe)
    split_checks.check_splits(recipe, dataset)
    responses.check_given(recipe, dataset)
    for renderer in views.renderers(recipe, dataset.shots).values():
        renderer.preview(dataset.eval[0])


def _check_training(recipe: Recipe, workspace: Workspace) -> None:
    preflight.check_student(recipe)
    if (collected := workspace.manifest("collect")) is not None:  # train.validation may have changed since
        split_checks.check_train_rows(recipe, collected.facts["counts"]["train"])


def _models(recipe: Recipe, stages: Collection[str]) -> dict[str, model_source.ModelSource | None]:
    """The models that the stages load, by the recipe's key."""
    found: dict[str, model_source.ModelSource | None] = {}
    if {"collect", "bench"} & {*stages}:
        teacher = model_source.teacher(recipe)
        found["teacher.model"] = teacher
        if isinstance(teacher, model_source.ServedSource):
            found["teacher.tokenizer"] = teacher.tokenizer
    if "train" in stages or ("collect" in stages and recipe.contexts.truncate == "input"):
        key = "tokenizer" if recipe.student.kind == "from_config" else "model"
        found[f"student.{key}"] = model_source.student(recipe)
    return found


def _student_files(recipe: Recipe) -> dict[str, str]:
    source = model_source.student(recipe)
    return {"student.model": source.fingerprint()} if source else {}


_STUDENT_LENGTH = ("kind", "model", "revision", "model_type", "config", "tokenizer", "max_length")
"""The student's keys on which it depends how long its views are and may be."""
SERVED = ("collect", "train", "export", "quantize")
"""What has to be fresh before devices are let in."""
STAGES = {
    stage.name: stage
    for stage in (
        Stage(
            "collect",
            ("seed", "task", "data", "contexts", "teacher", "shard_rows"),
            (),
            files=_collect_files,
            check=_check_data,
            keeps=("served/answers.jsonl", "served/grants.json"),
        ),
        Stage("train", ("seed", "student", "train"), ("collect",), files=_student_files, check=_check_training),
        Stage("export", ("export",), ("collect", "train")),
        Stage("quantize", ("quantize",), ("collect", "train", "export")),
        Stage("bench", ("seed", "bench"), ("collect", "train", "export", "quantize"), files=_teacher_files),
        Stage(
            "report",
            ("name", "seed", "report"),
            ("collect", "train", "export", "quantize", "bench"),
            optional=("devices",),
            gate="quantize",
            loads_models=False,
        ),
        Stage(
            "bundle",
            ("name", "bundle"),
            ("collect", "train", "export", "quantize"),
            soft_inputs=figures.bench_fingerprint,
            command=("export", "--bundle"),
            options={"bundle.text_in": "--text-in"},
            on_request=True,
            loads_models=False,
        ),
    )
}


_DEVICES = Stage("devices", (), SERVED, command=("bench", "--serve"), on_request=True)
"""What `serve` adds to: no stage that is run, but its files are verified as a stage's are."""


@dataclass(frozen=True)
class State:
    """A stage's state, and why; of one that is fresh, what there is to say all the same. next: what mends damage."""

    stage: str
    state: Literal["fresh", "stale", "missing", "damaged"]
    why: tuple[str, ...] = ()
    next: str = ""


@dataclass(frozen=True)
class StageResult:
    """What `stage` did; paths among the facts are the caller's (`Workspace.located`)."""

    stage: str
    manifest: Manifest
    reused: bool
    seconds: float


# ── freshness ────────────────────────────────────────────────────────────────────────────────────


def part(recipe: Recipe, stage: Stage) -> dict[str, Any]:
    """The part of the recipe a stage depends on."""
    found = recipe.model_dump(mode="json", include=set(stage.keys))
    if "teacher" in found:  # what an answer costs and how long it takes makes nothing stale
        found["teacher"] = {k: v for k, v in found["teacher"].items() if k not in recipe.teacher.operational}
    if stage.name == "collect" and recipe.contexts.truncate == "input":  # inputs are cut for the student as well
        student = recipe.model_dump(mode="json", include={"student"})["student"]
        found["student"] = {key: value for key, value in student.items() if key in _STUDENT_LENGTH}
    return found


def inputs(recipe: Recipe, workspace: Workspace, stage: Stage) -> dict[str, str]:
    """Fingerprints of everything a stage reads."""
    found = stage.files(recipe) | stage.soft_inputs(workspace)
    for name in (*stage.upstream, *stage.optional):
        with contextlib.suppress(UpstreamError):  # a damaged one counts as missing, or nothing could mend it
            if manifest := workspace.manifest(name):
                found[name] = manifest.fingerprint
    return found


def status(recipe: Recipe, workspace: Workspace, wanted: Collection[str] = ()) -> Iterator[State]:
    """Every stage's state in order; a stage below one that is not fresh is not fresh either. One that is made on
    request is left out until it was made, unless it is ``wanted``."""
    states: dict[str, State] = {}
    for stage in (*STAGES.values(), _DEVICES):
        states[stage.name] = _state(recipe, workspace, stage, states)
        if not stage.on_request or stage.name in wanted or states[stage.name].state != "missing":
            yield states[stage.name]


def _state(recipe: Recipe, workspace: Workspace, stage: Stage, above: dict[str, State]) -> State:
    try:
        manifest = workspace.manifest(stage.name)
    except UpstreamError as error:
        return State(stage.name, "damaged", (str(error),), _mend(stage, recipe, workspace))
    if manifest is None:
        return State(stage.name, "missing")
    if damage := workspace.damage(stage.name, manifest):
        return State(stage.name, "damaged", (damage,), _mend(stage, recipe, workspace, manifest))
    why = [*_changed_keys(manifest.recipe, part(recipe, stage), stage.options)]
    not_fresh = {name for name in stage.upstream if above[name].state != "fresh"}
    current = inputs(recipe, workspace, stage)
    for name in sorted({*manifest.inputs, *current}):
        if name in not_fresh:
            why.append(f"{name} is {above[name].state}")
        elif manifest.inputs.get(name) != current.get(name):
            why.append(_changed_input(stage, name))
    return State(stage.name, "stale" if why else "fresh", (*why, *_noted(stage, workspace, manifest)))


def _noted(stage: Stage, workspace: Workspace, manifest: Manifest) -> Iterator[str]:
    """What does not make it stale."""
    if manifest.checksum is None:
        yield "made by an older version (its manifest has no checksum)"
    if strangers := workspace.strangers(stage.name, manifest):
        more = f" and {len(strangers) - 1} more files are" if len(strangers) > 1 else " is"
        yield f"{strangers[0]}{more} not what {stage.name} committed: move it away"


def _mend(stage: Stage, recipe: Recipe, workspace: Workspace, manifest: Manifest | None = None) -> str:
    """What to type when something of it is damaged. manifest: it keeps what a command asked for."""
    recorded = flatten(manifest.recipe) if manifest else {}
    options = [option for key, option in stage.options.items() if recorded.get(key) is True]
    removed = f"rm -r {shlex.quote(str(workspace.folder('devices')))}; " if stage.name == "devices" else ""
    return removed + " ".join([_command(stage, recipe, workspace), *options])


def _changed_input(stage: Stage, name: str) -> str:
    if name in stage.optional:
        return f"{name} changed"
    return f"{name} was made again" if name in STAGES else f"the file of {name} changed"


def _changed_keys(before: dict[str, Any], after: dict[str, Any], options: Collection[str]) -> Iterator[str]:
    old, new = flatten(before), flatten(after)
    for key in sorted({*old, *new}):
        if key in options and old.get(key) is True:
            continue
        if old.get(key) != new.get(key) or (key in old) != (key in new):
            yield f"{key} changed{_from_to(old.get(key), new.get(key))}"


def _from_to(old: Any, new: Any) -> str:
    """Both values, where they are numbers."""
    both = [value for value in (old, new) if isinstance(value, int | float) and not isinstance(value, bool)]
    return f" from {both[0]:g} to {both[1]:g}" if len(both) == 2 else ""


# ── running ──────────────────────────────────────────────────────────────────────────────────────


def stage(name: str, recipe: Recipe, workspace: Workspace, *, force: bool = False) -> StageResult:
    """Run one stage unless it is fresh. UpstreamError when what it reads is missing, stale or damaged."""
    if ranks.count() > 1:
        return _on_ranks(STAGES[name], recipe, workspace, force)
    with workspace.lock():
        return _stage(STAGES[name], recipe, workspace, force)


def _on_ranks(one: Stage, recipe: Recipe, workspace: Workspace, force: bool) -> StageResult:
    """The first rank holds the run directory and decides; the others wait for its word, and for what came of it."""
    with _group().together():
        if ranks.is_first():
            with workspace.lock():
                ran: StageResult = _group().broadcast(_stage(one, recipe, workspace, force))
        else:
            word: Any = _group().broadcast()
            if word == _WORK:
                one.run(recipe, workspace)
                word = _group().broadcast()
            ran = word
    return ran


_WORK = "there is work"


def _group() -> Any:
    return importlib.import_module("distillctl.training.collectives")  # only now: it brings torch


def run(recipe: Recipe, workspace: Workspace, *, force: bool = False) -> Iterator[StageResult]:
    """All stages in order but those made on request, skipping what is fresh. A model that is not there is told before
    anything is paid for."""
    for find in (model_source.teacher, model_source.student):
        find(recipe)
    with workspace.lock():
        untouched = not force
        all_of_them = [name for name, one in STAGES.items() if not one.on_request]
        states = [state for state in status(recipe, workspace) if state.stage in all_of_them]
        if force or any(state.state != "fresh" for state in states):
            preflight.check_student(recipe)
            approvals.check_code(recipe)
            hub.require(_models(recipe, [state.stage for state in states if force or state.state != "fresh"]))
        for state in states:
            untouched = untouched and state.state == "fresh"
            manifest = workspace.manifest(state.stage) if untouched else None
            if manifest:
                cautions.repeat(manifest.facts.get("cautions", ()))
                yield StageResult(state.stage, workspace.located(manifest), reused=True, seconds=0.0)
            else:
                yield _stage(STAGES[state.stage], recipe, workspace, force)


def serve(recipe: Recipe, workspace: Workspace, **options: Any) -> list[dict[str, Any]]:
    """Let devices run the deployed graph in their browsers; what they found. options: `distillctl.phone.serve.Options`.

    The run directory is held meanwhile: what is handed out is what was recorded. UpstreamError as `stage` has it.
    """
    with workspace.lock():
        require("bench --serve", SERVED, status(recipe, workspace), recipe, workspace)
        read = {name: manifest.fingerprint for name in SERVED if (manifest := workspace.manifest(name))}
        from distillctl.phone import serve  # only now: it brings onnxruntime

        return serve.serve(recipe, workspace, serve.Options(**options), read)


def require(
    wanting: str, upstream: tuple[str, ...], states: Iterable[State], recipe: Recipe, workspace: Workspace
) -> None:
    """Refuse unless all of ``upstream`` are fresh, and name the command that mends the first that is not."""
    found = {state.stage: state for state in states}
    for name in upstream:
        if found[name].state != "fresh":
            why = f": {'; '.join(found[name].why)}" if found[name].why else ""
            raise UpstreamError(
                f"{wanting} needs {name}, which is {found[name].state}{why}",
                next=_command(STAGES[name], recipe, workspace),
            )


def _stage(one: Stage, recipe: Recipe, workspace: Workspace, force: bool) -> StageResult:
    states = {state.stage: state for state in status(recipe, workspace, [one.name])}
    require(one.name, _needs(one, recipe, workspace), states.values(), recipe, workspace)
    manifest = workspace.manifest(one.name) if states[one.name].state in ("fresh", "stale") else None
    if manifest and states[one.name].state == "fresh" and not force:
        cautions.repeat(manifest.facts.get("cautions", ()))
        return StageResult(one.name, workspace.located(manifest), reused=True, seconds=0.0)
    with cautions.collected() as doubts:
        return _make(one, recipe, workspace, force, states[one.name], manifest, doubts)


def _needs(one: Stage, recipe: Recipe, workspace: Workspace) -> tuple[str, ...]:
    """The stages that have to be fresh: all upstream, or those before a gate that has failed."""
    if one.gate and attempts.current(workspace, one.gate, part(recipe, STAGES[one.gate])):
        return one.upstream[: one.upstream.index(one.gate)]
    return one.upstream


def _make(
    one: Stage,
    recipe: Recipe,
    workspace: Workspace,
    force: bool,
    state: State,
    manifest: Manifest | None,
    doubts: list[cautions.Caution],
) -> StageResult:
    """Run the stage and commit what it made, the cautions that were added meanwhile among its facts."""
    if one.loads_models:
        approvals.check_code(recipe)
    one.check(recipe, workspace)
    hub.require(_models(recipe, [one.name]))
    reason = "; ".join(state.why) or ("forced" if manifest else "not done yet")
    console.note(f"▸ {one.name} ({reason})")
    write_text(workspace.root / "recipe.lock.yaml", dump(recipe))
    start = time.perf_counter()
    with workspace.rerun(one.name) if force else contextlib.nullcontext():
        # What the stage reads is fingerprinted before it runs: a file changed meanwhile makes the result stale.
        read = inputs(recipe, workspace, one)
        try:
            outcome = one.run(recipe, workspace)
        except GateFailed as failure:
            if failure.facts and ranks.is_first():
                attempts.keep(
                    workspace,
                    one.name,
                    recipe=part(recipe, one),
                    inputs=read,
                    facts={**failure.facts, "cautions": doubts},
                    seed=recipe.seed,
                    seconds=time.perf_counter() - start,
                )
            raise
        # A hub model's commit is known only once it is here.
        read |= {key: value for key, value in _hub_models(recipe).items() if key in read}
        seconds = time.perf_counter() - start
        with interrupts.deferred():  # what is done is done
            manifest = workspace.commit(
                one.name,
                recipe=part(recipe, one),
                inputs=read,
                # The report gathers all stages' cautions; its own are among them.
                outcome=StageOutput(outcome.outputs, {"cautions": doubts, **outcome.facts}),
                seed=recipe.train_seed if one.name == "train" else recipe.seed,
                seconds=seconds,
                keeps=one.keeps,
            )
    attempts.forget(workspace, one.name)
    interrupts.raise_if_pending()
    return StageResult(one.name, workspace.located(manifest), reused=False, seconds=seconds)


def _hub_models(recipe: Recipe) -> dict[str, str]:
    sources = {"teacher.model": model_source.teacher(recipe), "student.model": model_source.student(recipe)}
    return {key: source.fingerprint() for key, source in sources.items() if source and source.path is None}


def _command(stage: Stage, recipe: Recipe, workspace: Workspace) -> str:
    """What to type to run a stage as this one was asked for."""
    run_dir = [] if workspace.root == Path("runs") / recipe.name else ["--run-dir", str(workspace.root)]
    overrides = [word for override in recipe.overrides for word in ("--set", override)]
    command, *options = stage.command or (stage.name,)
    return shlex.join(["distillctl", command, str(recipe.path), *run_dir, *overrides, *options])
