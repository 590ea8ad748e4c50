"""The commands; each is glue. Nothing here, nor what --help needs, imports torch."""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from distillctl import __version__, console
from distillctl.errors import Interrupted, Told, UsageError

EXIT_CODES = """
Exit codes: 0 done · 1 a bug · 2 usage · 3 the recipe or the data is wrong or missing · 4 an upstream stage is missing,
stale or damaged · 5 something is not installed, reachable or writable · 6 a gate failed · 130/143 interrupted.
"""

app = typer.Typer(
    name="distillctl",
    help="Turn a prompt into a phone-sized model.\n\n"
    "A teacher that sees the full context labels your data; a student that sees only the input learns those labels, "
    "becomes ONNX, is quantized, and is measured the way a phone would run it.\n" + EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.", show_default=False)]
RunDir = Annotated[
    Path | None,
    typer.Option("--run-dir", metavar="DIR", help="Where the outputs go.", show_default="runs/<recipe name>"),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY.PATH=VALUE", help="Change a knob of the recipe; repeatable.", show_default=False
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Do it anew even if it is fresh; nothing is reused.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved plan and do nothing.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings and errors on stderr.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="More on stderr.")]


def command(name: str, help: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command whose errors become messages and exit codes."""

    def register(body: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(body)
        def guarded(*args: Any, **kwargs: Any) -> None:
            signal.signal(signal.SIGTERM, _terminate)
            verbosity = int(kwargs.get("verbose", False)) - int(kwargs.get("quiet", False))
            console.configure(as_json=bool(kwargs.get("as_json")), verbosity=verbosity)
            try:
                body(*args, **kwargs)
            except (Told, KeyboardInterrupt) as problem:
                told = problem if isinstance(problem, Told) else Interrupted(signal.SIGINT)
                console.error(told)
                raise typer.Exit(told.exit_code) from None
            except typer.Exit:
                raise
            except BrokenPipeError:
                raise typer.Exit(0) from None
            except Exception as problem:
                console.bug(problem)
                raise typer.Exit(1) from None

        app.command(name, help=help)(guarded)
        return guarded

    return register


def _terminate(number: int, frame: object) -> None:
    raise Interrupted(number)


def _open(recipe_path: Path, run_dir: Path | None, overrides: list[str] | None) -> tuple[Any, Any]:
    from distillctl import recipe
    from distillctl.workspace import Workspace

    loaded = recipe.load(recipe_path, overrides or ())
    return loaded, Workspace(run_dir or Path("runs") / loaded.name)


def _plan(recipe: Any, workspace: Any, stages: list[str]) -> None:
    from distillctl import planning, summaries

    plan = planning.plan(recipe, workspace, stages)
    console.result(plan, *summaries.plan(plan))


# ── the stages ───────────────────────────────────────────────────────────────────────────────────


def _stage(name: str, help: str) -> None:
    @command(name, help)
    def body(
        recipe: RecipePath,
        run_dir: RunDir = None,
        set_: Set = None,
        force: Force = False,
        dry_run: DryRun = False,
        as_json: Json = False,
        quiet: Quiet = False,
        verbose: Verbose = False,
    ) -> None:
        from distillctl import pipeline, summaries

        loaded, workspace = _open(recipe, run_dir, set_)
        if dry_run:
            return _plan(loaded, workspace, [name])
        ran = pipeline.stage(name, loaded, workspace, force=force)
        console.result(summaries.as_json(ran), *summaries.readable(ran))


_stage("collect", "Teacher soft labels under the full context, and the arms they are compared with.")
_stage("train", "The student, on the simplified context.")
_stage("export", "ONNX, checked against PyTorch.")
_stage("quantize", "Smaller ONNX, gated on quality.")


@command("bench", "Latency, memory and size, the way a phone would see them.")
def bench(
    recipe: RecipePath,
    run_dir: RunDir = None,
    set_: Set = None,
    force: Force = False,
    dry_run: DryRun = False,
    serve: Annotated[
        bool, typer.Option("--serve", help="Hand out a page on which a phone's browser measures the deployed graph.")
    ] = False,
    host: Annotated[
        str | None,
        typer.Option(metavar="ADDR", help="Listen there; 0.0.0.0: every network.", show_default="this machine alone"),
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, metavar="N", help="Listen there.", show_default="any that is free")
    ] = None,
    assets: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="onnxruntime-web's files.", show_default="the cache, filled from npm"),
    ] = None,
    devices: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Stop after the results of N devices.", show_default="1")
    ] = None,
    serve_seconds: Annotated[
        float | None,
        typer.Option(min=1, metavar="S", help="Stop after S seconds without a request.", show_default="600"),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    from distillctl import pipeline, summaries

    given = {"host": host, "port": port, "assets": assets, "devices": devices, "idle_seconds": serve_seconds}
    given = {name: value for name, value in given.items() if value is not None}
    if given and not serve:
        raise UsageError("--host, --port, --assets, --devices and --serve-seconds belong to --serve")
    if serve and (force or dry_run):
        raise UsageError("--serve and --force, --serve and --dry-run exclude each other")
    loaded, workspace = _open(recipe, run_dir, set_)
    if dry_run:
        return _plan(loaded, workspace, ["bench"])
    if serve:
        found = pipeline.serve(loaded, workspace, **given)
        console.result({"stage": "devices", "devices": found}, *summaries.devices(found))
    else:
        ran = pipeline.stage("bench", loaded, workspace, force=force)
        console.result(summaries.as_json(ran), *summaries.readable(ran))


@command("report", "One self-contained HTML page; or a summary for CI.")
def report(
    recipe: RecipePath,
    run_dir: RunDir = None,
    set_: Set = None,
    format: Annotated[Literal["html", "md", "json"], typer.Option("--format", help="What to print or write.")] = "html",
    force: Force = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    from distillctl import pipeline, summaries

    if as_json and format == "md":
        raise UsageError("--json and --format md exclude each other")
    loaded, workspace = _open(recipe, run_dir, set_)
    if dry_run:
        return _plan(loaded, workspace, ["report"])
    ran = pipeline.stage("report", loaded, workspace, force=force)
    if format == "md":
        from distillctl.report.markdown import render

        console.text(render(ran.manifest.facts))
    elif format == "json":
        console.print_json(ran.manifest.facts)
    else:
        console.result(summaries.as_json(ran), *summaries.readable(ran), summaries.report_path(workspace))


@command("run", "All stages in order, skipping what is fresh (like make).")
def run(
    recipe: RecipePath,
    run_dir: RunDir = None,
    set_: Set = None,
    force: Force = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    from distillctl import pipeline, summaries

    loaded, workspace = _open(recipe, run_dir, set_)
    if dry_run:
        return _plan(loaded, workspace, list(pipeline.STAGES))
    done = []
    for ran in pipeline.run(loaded, workspace, force=force):
        if ran.reused:
            console.note(summaries.line(ran))
        elif ran.stage != "report":
            console.aside(*summaries.readable(ran))
        done.append(ran)
    outcome = summaries.as_json(done[-1]) | {"stages": {ran.stage: summaries.brief(ran) for ran in done}}
    console.result(outcome, *summaries.readable(done[-1]), summaries.report_path(workspace))


# ── around them ──────────────────────────────────────────────────────────────────────────────────


@command("status", "Which stages are fresh, stale, missing or damaged, and why.")
def status(
    recipe: RecipePath,
    run_dir: RunDir = None,
    set_: Set = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    from distillctl import pipeline, summaries

    loaded, workspace = _open(recipe, run_dir, set_)
    states = list(pipeline.status(loaded, workspace))
    rows = [{"stage": s.stage, "state": s.state, "why": list(s.why)} for s in states]
    console.result({"run_dir": str(workspace.root), "stages": rows}, summaries.states(states))


@command("init", "A commented recipe to start from.")
def init(
    directory: Annotated[Path | None, typer.Argument(metavar="DIR", help="A new folder.", show_default=False)] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the recipe's JSON Schema, for editors.")] = False,
    as_json: Json = False,
) -> None:
    from distillctl import starter

    if schema:
        console.print_json(starter.schema())
        return
    if directory is None:
        raise UsageError("give a folder, or --schema", next="distillctl init my-recipe")
    created = starter.write(directory)
    console.result(
        {"created": [str(path) for path in created]},
        *[f"created {path}" for path in created],
        f"next: edit {created[0]}, then  distillctl run {created[0]} --dry-run",
    )


@command("doctor", "Versions, CPU features, what is missing.")
def doctor(as_json: Json = False) -> None:
    from distillctl import diagnosis, summaries

    found = diagnosis.examine()
    console.result(found, *summaries.diagnosis(found))
    if found["missing"]:
        raise typer.Exit(5)


def _version(wanted: bool) -> None:
    if wanted:
        console.text(f"distillctl {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    pass


def main() -> None:
    """The console script."""
    app(prog_name="distillctl")


if __name__ == "__main__":
    main()
