"""Run the stages in order, and tell which are fresh. Freshness compares fingerprints, never times."""

from __future__ import annotations

import contextlib
import importlib
import shlex
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from distillctl import cautions, console, interrupts, ranks
from distillctl.bundle import figures
from distillctl.data import examples, responses, split_checks, views
from distillctl.errors import GateFailed, UpstreamError
from distillctl.models import hub, model_source
from distillctl.recipe import OpenAITeacher, Recipe, dump, flatten
from distillctl.run_dir import attempts
from distillctl.run_dir.facts import DataFacts, Facts, StageFacts
from distillctl.run_dir.workspace import Manifest, StageOutput, Workspace, write_text
from distillctl.students import preflight
from distillctl.teachers import engines
from distillctl.trust import approvals, recipe_access

if TYPE_CHECKING:
    from distillctl.phone.devices import DeviceFigures


@dataclass(frozen=True)
class Stage:
    """One stage: the keys of the recipe, the stages and the files that it reads."""

    name: str
    keys: tuple[str, ...]
    upstream: tuple[str, ...]
    optional: tuple[str, ...] = ()
    """Stages that are read if they exist. A change makes this stage stale."""
    files: Callable[[Recipe], dict[str, str]] = lambda recipe: {}
    """Recipe key → fingerprint of the file it names."""
    check: Callable[[Recipe, Workspace], None] = lambda recipe, workspace: None
    """Finds the errors that recipe, data and upstream manifests show, before torch is imported."""
    soft_inputs: Callable[[Workspace], dict[str, str]] = lambda workspace: {}
    """Stage → fingerprint of results that it uses if they exist."""
    keeps: tuple[str, ...] = ()
    """Files in its folder that only its own next run reads. They are verified like its outputs."""
    command: tuple[str, ...] = ()
    """The command that runs it, and options after the recipe; default: its name."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Key of the recipe → option that turns it on for one command. The result stays fresh without the option."""
    gate: str | None = None
    """The stage whose failed gate this stage can report. It then runs without that stage and later ones."""
    on_request: bool = False
    """`run` skips it, and `status` shows it only after it was run."""
    loads_models: bool = True
    """Loads teacher or student, and so the code that comes with them if the user allows it."""

    def run(self, recipe: Recipe, workspace: Workspace) -> StageOutput:
        """Run the stage. This imports torch."""
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
    views.check(views.renderers(recipe, dataset.shots), dataset.eval[: views.CHECKED])


def _check_training(recipe: Recipe, workspace: Workspace) -> None:
    preflight.check_student(recipe)
    if (collected := workspace.manifest("collect")) is not None:  # train.validation may have changed since
        split_checks.check_train_rows(recipe, collected.read(DataFacts).counts.train)


def _models(recipe: Recipe, stages: Collection[str]) -> dict[str, model_source.ModelSource | None]:
    """Return recipe key → model that the stages load."""
    models: dict[str, model_source.ModelSource | None] = {}
    if {"collect", "bench"} & {*stages}:
        teacher = model_source.teacher(recipe)
        models["teacher.model"] = teacher
        if isinstance(teacher, model_source.ServedSource):
            models["teacher.tokenizer"] = teacher.tokenizer
    if "train" in stages or ("collect" in stages and recipe.contexts.truncate == "input"):
        key = "tokenizer" if recipe.student.kind == "from_config" else "model"
        models[f"student.{key}"] = model_source.student(recipe)
    return models


def _student_files(recipe: Recipe) -> dict[str, str]:
    source = model_source.student(recipe)
    return {"student.model": source.fingerprint()} if source else {}


_STUDENT_LENGTH = ("kind", "model", "revision", "model_type", "config", "tokenizer", "max_length")
"""The student's keys on which the length and the limit of its views depend."""
SERVED = ("collect", "train", "export", "quantize")
"""Stages that must be fresh before devices measure."""
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
"""The results that `serve` collects. It is not run as a stage, but its files are verified like one's."""


@dataclass(frozen=True)
class State:
    """A stage's state, and why. A fresh stage may have notes. next: the command that repairs damage."""

    stage: str
    state: Literal["fresh", "stale", "missing", "damaged"]
    why: tuple[str, ...] = ()
    next: str = ""


@dataclass(frozen=True)
class StageResult:
    """The result of `stage`. Paths among the facts can be opened by the caller (`Workspace.located`)."""

    stage: str
    manifest: Manifest
    reused: bool
    seconds: float


# ── freshness ────────────────────────────────────────────────────────────────────────────────────


def part(recipe: Recipe, stage: Stage) -> dict[str, Any]:
    """Return the part of the recipe that a stage depends on."""
    keys_read = recipe.model_dump(mode="json", include=set(stage.keys))
    if "teacher" in keys_read:  # costs and time limits make nothing stale
        keys_read["teacher"] = {k: v for k, v in keys_read["teacher"].items() if k not in recipe.teacher.operational}
    if stage.name == "collect" and recipe.contexts.truncate == "input":  # inputs are also cut for the student
        student = recipe.model_dump(mode="json", include={"student"})["student"]
        keys_read["student"] = {key: value for key, value in student.items() if key in _STUDENT_LENGTH}
    if stage.name == "collect" and recipe.train.weights == "context_kl":  # measured on the train rows, too
        keys_read["train"] = {"weights": "context_kl"}
    return keys_read


def inputs(recipe: Recipe, workspace: Workspace, stage: Stage) -> dict[str, str]:
    """Return the fingerprints of everything that a stage reads."""
    fingerprints = stage.files(recipe) | stage.soft_inputs(workspace)
    for name in (*stage.upstream, *stage.optional):
        with contextlib.suppress(UpstreamError):  # damaged counts as missing, otherwise it could not be repaired
            if manifest := workspace.manifest(name):
                fingerprints[name] = manifest.fingerprint
    return fingerprints


def status(recipe: Recipe, workspace: Workspace, wanted: Collection[str] = ()) -> Iterator[State]:
    """Yield every stage's state in order. A stage whose upstream is not fresh is not fresh either.

    A stage that is run on request is left out until it was run, unless it is ``wanted``.
    """
    states: dict[str, State] = {}
    for stage in (*STAGES.values(), _DEVICES):
        states[stage.name] = _state(recipe, workspace, stage, states)
        if not stage.on_request or stage.name in wanted or states[stage.name].state != "missing":
            yield states[stage.name]


def _state(recipe: Recipe, workspace: Workspace, stage: Stage, above: dict[str, State]) -> State:
    try:
        manifest = workspace.manifest(stage.name)
    except UpstreamError as error:
        return State(stage.name, "damaged", (str(error),), _repair_command(stage, recipe, workspace))
    if manifest is None:
        return State(stage.name, "missing")
    if damage := workspace.damage(stage.name, manifest):
        return State(stage.name, "damaged", (damage,), _repair_command(stage, recipe, workspace, manifest))
    why = [*_changed_keys(manifest.recipe, part(recipe, stage), stage.options, _defaults(recipe))]
    not_fresh = {name for name in stage.upstream if above[name].state != "fresh"}
    current = inputs(recipe, workspace, stage)
    for name in sorted({*manifest.inputs, *current}):
        if name in not_fresh:
            why.append(f"{name} is {above[name].state}")
        elif manifest.inputs.get(name) != current.get(name):
            why.append(_changed_input(stage, name))
    return State(stage.name, "stale" if why else "fresh", (*why, *_notes(stage, workspace, manifest)))


def _notes(stage: Stage, workspace: Workspace, manifest: Manifest) -> Iterator[str]:
    """Yield remarks that do not make the stage stale."""
    if manifest.checksum is None:
        yield "made by an older version (its manifest has no checksum)"
    if strangers := workspace.strangers(stage.name, manifest):
        more = f" and {len(strangers) - 1} more files are" if len(strangers) > 1 else " is"
        yield f"{strangers[0]}{more} not what {stage.name} committed: move it away"


def _repair_command(stage: Stage, recipe: Recipe, workspace: Workspace, manifest: Manifest | None = None) -> str:
    """Return the command that repairs a damaged stage. manifest: it has the options of the original command."""
    recorded = flatten(manifest.recipe) if manifest else {}
    options = [option for key, option in stage.options.items() if recorded.get(key) is True]
    removed = f"rm -r {shlex.quote(str(workspace.folder('devices')))}; " if stage.name == "devices" else ""
    return removed + " ".join([_command(stage, recipe, workspace), *options])


def _changed_input(stage: Stage, name: str) -> str:
    if name in stage.optional:
        return f"{name} changed"
    return f"{name} was made again" if name in STAGES else f"the file of {name} changed"


def _defaults(recipe: Recipe) -> set[str]:
    """Return the keys of the knobs that have their default value."""
    return {*flatten(recipe.model_dump(mode="json"))} - {
        *flatten(recipe.model_dump(mode="json", exclude_defaults=True))
    }


def _changed_keys(
    before: dict[str, object], after: dict[str, object], options: Collection[str], defaults: Collection[str]
) -> Iterator[str]:
    old, new = flatten(before), flatten(after)
    for key in sorted({*old, *new}):
        if key in options and old.get(key) is True:
            continue
        if key not in old and key in defaults:  # a knob that the older version did not have, and that is not set
            continue
        if old.get(key) != new.get(key) or (key in old) != (key in new):
            yield f"{key} changed{_from_to(old.get(key), new.get(key))}"


def _from_to(old: object, new: object) -> str:
    """Return both values if they are numbers."""
    both = [value for value in (old, new) if isinstance(value, int | float) and not isinstance(value, bool)]
    return f" from {both[0]:g} to {both[1]:g}" if len(both) == 2 else ""


# ── running ──────────────────────────────────────────────────────────────────────────────────────


def stage(name: str, recipe: Recipe, workspace: Workspace, *, force: bool = False) -> StageResult:
    """Run one stage unless it is fresh. Raise UpstreamError if a stage that it reads is missing, stale or damaged."""
    if ranks.count() > 1:
        return _on_ranks(STAGES[name], recipe, workspace, force)
    if not workspace.root.exists():  # a stage that cannot run creates no folder
        require(name, _needs(STAGES[name], recipe, workspace), status(recipe, workspace), recipe, workspace)
    with workspace.lock():
        return _stage(STAGES[name], recipe, workspace, force)


def _on_ranks(stage: Stage, recipe: Recipe, workspace: Workspace, force: bool) -> StageResult:
    """Let the first rank hold the run directory and decide; the others follow it and get its result."""
    with _group().together():
        if ranks.is_first():
            with workspace.lock():
                result: StageResult = _group().broadcast(_stage(stage, recipe, workspace, force))
        else:
            message: Any = _group().broadcast()
            if message == _WORK:
                stage.run(recipe, workspace)
                message = _group().broadcast()
            result = message
    return result


_WORK = "there is work"


def _group() -> Any:
    return importlib.import_module("distillctl.training.collectives")  # not at the top: it imports torch


def run(recipe: Recipe, workspace: Workspace, *, force: bool = False) -> Iterator[StageResult]:
    """All stages in order but those made on request, skipping what is fresh. A model that is not there is told before
    anything is paid for."""
    for find in (model_source.teacher, model_source.student):
        find(recipe)
    with workspace.lock():
        upstream_fresh = not force
        in_order = [name for name, stage in STAGES.items() if not stage.on_request]
        states = [state for state in status(recipe, workspace) if state.stage in in_order]
        if force or any(state.state != "fresh" for state in states):
            preflight.check_student(recipe)
            approvals.check_code(recipe)
            hub.require(_models(recipe, [state.stage for state in states if force or state.state != "fresh"]))
        for state in states:
            upstream_fresh = upstream_fresh and state.state == "fresh"
            manifest = workspace.manifest(state.stage) if upstream_fresh else None
            if manifest:
                cautions.repeat(manifest.read(StageFacts).cautions)
                yield StageResult(state.stage, workspace.located(manifest), reused=True, seconds=0.0)
            else:
                yield _stage(STAGES[state.stage], recipe, workspace, force)


def serve(recipe: Recipe, workspace: Workspace, **options: Any) -> list[DeviceFigures]:
    """Let devices run the deployed graph in their browsers, and return their results.

    The run directory is locked meanwhile, so that the served files are the recorded ones. options:
    `distillctl.phone.serve.Options`. Raises UpstreamError like `stage`.
    """
    with workspace.lock():
        require("bench --serve", SERVED, status(recipe, workspace), recipe, workspace)
        fingerprints = {name: manifest.fingerprint for name in SERVED if (manifest := workspace.manifest(name))}
        from distillctl.phone import serve  # not at the top: it imports onnxruntime

        return serve.serve(recipe, workspace, serve.Options(**options), fingerprints)


def require(
    command: str, upstream: tuple[str, ...], states: Iterable[State], recipe: Recipe, workspace: Workspace
) -> None:
    """Raise UpstreamError unless all of ``upstream`` are fresh. It names the command that repairs the first one."""
    by_name = {state.stage: state for state in states}
    for name in upstream:
        if by_name[name].state != "fresh":
            why = f": {'; '.join(by_name[name].why)}" if by_name[name].why else ""
            raise UpstreamError(
                f"{command} needs {name}, which is {by_name[name].state}{why}",
                next=_command(STAGES[name], recipe, workspace),
            )


def _stage(stage: Stage, recipe: Recipe, workspace: Workspace, force: bool) -> StageResult:
    states = {state.stage: state for state in status(recipe, workspace, [stage.name])}
    require(stage.name, _needs(stage, recipe, workspace), states.values(), recipe, workspace)
    manifest = workspace.manifest(stage.name) if states[stage.name].state in ("fresh", "stale") else None
    if manifest and states[stage.name].state == "fresh" and not force:
        cautions.repeat(manifest.read(StageFacts).cautions)
        return StageResult(stage.name, workspace.located(manifest), reused=True, seconds=0.0)
    with cautions.collected() as doubts:
        return _make(stage, recipe, workspace, force, states[stage.name], manifest, doubts)


def _needs(stage: Stage, recipe: Recipe, workspace: Workspace) -> tuple[str, ...]:
    """Return the stages that must be fresh: all upstream, or those before a gate that failed."""
    if stage.gate and attempts.current(workspace, stage.gate, part(recipe, STAGES[stage.gate])):
        return stage.upstream[: stage.upstream.index(stage.gate)]
    return stage.upstream


def _make(
    stage: Stage,
    recipe: Recipe,
    workspace: Workspace,
    force: bool,
    state: State,
    manifest: Manifest | None,
    doubts: list[cautions.Caution],
) -> StageResult:
    """Run the stage, and commit its output with the cautions that were added meanwhile."""
    if stage.loads_models:
        approvals.check_code(recipe)
    stage.check(recipe, workspace)
    hub.require(_models(recipe, [stage.name]))
    reason = "; ".join(state.why) or ("forced" if manifest else "not done yet")
    console.note(f"▸ {stage.name} ({reason})")
    write_text(workspace.root / "recipe.lock.yaml", dump(recipe))
    start = time.perf_counter()
    with workspace.rerun(stage.name) if force else contextlib.nullcontext():
        # What the stage reads is fingerprinted before it runs: a file changed meanwhile makes the result stale.
        read = inputs(recipe, workspace, stage)
        try:
            outcome = stage.run(recipe, workspace)
        except GateFailed as failure:
            if failure.facts and ranks.is_first():
                attempts.keep(
                    workspace,
                    stage.name,
                    recipe=part(recipe, stage),
                    inputs=read,
                    facts=Facts.model_validate({**failure.facts, "cautions": doubts}),
                    seed=recipe.seed,
                    seconds=time.perf_counter() - start,
                )
            raise
        # A hub model's commit is known only after the download.
        read |= {key: value for key, value in _hub_models(recipe).items() if key in read}
        seconds = time.perf_counter() - start
        with interrupts.deferred():  # what is done is done
            manifest = workspace.commit(
                stage.name,
                recipe=part(recipe, stage),
                inputs=read,
                # The report's facts have all stages' cautions, its own included.
                outcome=StageOutput(outcome.outputs, StageFacts.model_validate({"cautions": doubts}) | outcome.facts),
                seed=recipe.train_seed if stage.name == "train" else recipe.seed,
                seconds=seconds,
                keeps=stage.keeps,
            )
    attempts.forget(workspace, stage.name)
    interrupts.raise_if_pending()
    return StageResult(stage.name, workspace.located(manifest), reused=False, seconds=seconds)


def _hub_models(recipe: Recipe) -> dict[str, str]:
    sources = {"teacher.model": model_source.teacher(recipe), "student.model": model_source.student(recipe)}
    return {key: source.fingerprint() for key, source in sources.items() if source and source.path is None}


def _command(stage: Stage, recipe: Recipe, workspace: Workspace) -> str:
    """Return the command that runs a stage with the present recipe and options."""
    run_dir = [] if workspace.root == Path("runs") / recipe.name else ["--run-dir", str(workspace.root)]
    overrides = [word for override in recipe.overrides for word in ("--set", override)]
    command, *options = stage.command or (stage.name,)
    return shlex.join(["distillctl", command, str(recipe.path), *run_dir, *overrides, *options])
