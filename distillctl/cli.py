"""The command line: options, errors and exit codes. Nothing that --help needs imports torch."""

from __future__ import annotations

import functools
import inspect
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

from distillctl import __version__, console, interrupts, ranks
from distillctl.errors import Interrupted, UnavailableError, UsageError, UserFacingError
from distillctl.terminal import os_errors, streams

if TYPE_CHECKING:
    from distillctl.recipe import Recipe
    from distillctl.run_dir.workspace import Workspace

EXIT_CODES = """
Exit codes:
  0  done
  1  a bug in distillctl
  2  the command line is wrong
  3  the recipe or the data is wrong or missing
  4  an upstream stage is missing, stale or damaged
  5  something is not installed, reachable or writable
  6  a gate failed
  130, 143  interrupted by Ctrl-C or SIGTERM
"""

app = typer.Typer(
    name="distillctl",
    help="Turn a prompt into a phone-sized model.\n\n"
    "A teacher that sees the full context labels your data. A student that sees only the input learns those labels, "
    "becomes ONNX, is quantized, and is measured the way a phone would run it.\n\n"
    "Start with: distillctl guide getting-started\n" + EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.", show_default=False)]
RunDir = Annotated[
    Path | None,
    typer.Option("--run-dir", metavar="DIR", help="Folder for the outputs.", show_default="runs/<recipe name>"),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY.PATH=VALUE", help="Set one knob of the recipe; repeatable.", show_default=False),
]
QUICK = ("bench.queries=40", "bench.processes=2", "bench.max_seconds=5", "bench.sustained_seconds=null")
QUICK_LOADGEN = ("bench.loadgen.min_queries=64", "bench.loadgen.min_seconds=1")
"""Settings of `bench --quick`. Its results are stale for any other command."""
Force = Annotated[bool, typer.Option("--force", help="Run again even if fresh, and reuse nothing.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and do nothing.")]
Trust = Annotated[
    list[str] | None,
    typer.Option(
        "--trust",
        metavar="VARIABLE@HOST",
        help="Let the key in this variable go to this host, now and later; repeatable. Or set DISTILLCTL_TRUST.",
        show_default=False,
    ),
]
RemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run a model's own code, where the recipe allows it, too.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show only warnings and errors.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show more details.")]


@dataclass(frozen=True, kw_only=True)
class RecipeOptions:
    """The argument and the options of every command that reads a recipe."""

    recipe: RecipePath
    run_dir: RunDir = None
    set_: Set = None
    as_json: Json = False
    quiet: Quiet = False
    verbose: Verbose = False


@dataclass(frozen=True, kw_only=True)
class ReportOptions(RecipeOptions):
    """The options of report, which loads no models."""

    force: Force = False
    dry_run: DryRun = False


@dataclass(frozen=True, kw_only=True)
class StageOptions(ReportOptions):
    """The options of a command that runs a stage."""

    trust_remote_code: RemoteCode = False


@dataclass(frozen=True, kw_only=True)
class CollectOptions(StageOptions):
    """The options of a command that may send rows to a server."""

    trust: Trust = None


def command(name: str, help: str, group: typer.Typer = app) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command whose errors become messages and exit codes.

    A parameter of the body named ``options`` stands for all fields of its class.
    """

    def register(body: Callable[..., None]) -> Callable[..., None]:
        parameters = inspect.signature(body, eval_str=True).parameters
        shared = parameters["options"].annotation if "options" in parameters else None
        hints = {} if shared is None else get_type_hints(shared, include_extras=True)

        @functools.wraps(body)
        def guarded(**kwargs: Any) -> None:
            verbosity = int(kwargs.get("verbose", False)) - int(kwargs.get("quiet", False))
            console.configure(as_json=bool(kwargs.get("as_json")), verbosity=verbosity)
            with interrupts.restored():
                try:
                    # A rank that has not joined the first one has nothing to lose.
                    with interrupts.handled(console.from_handler, left=not ranks.is_first()):
                        if ranks.count() > 1 and name != "train":
                            raise UsageError(
                                f"{name} runs in one process; only train takes several ranks",
                                next="start it without torchrun or accelerate launch (they set WORLD_SIZE)",
                            )
                        os_errors.check_paths(kwargs.values())
                        if shared is not None:
                            kwargs["options"] = shared(**{name: kwargs.pop(name) for name in hints})
                        body(**kwargs)
                except typer.Exit:
                    raise
                except (UserFacingError, KeyboardInterrupt, Exception) as problem:
                    error = _user_error(problem)
                    if _reports_error():
                        console.bug(problem) if error is None else console.error(error)
                    raise typer.Exit(1 if error is None else error.exit_code) from None

        guarded.__signature__ = inspect.Signature(_parameters(parameters, shared, hints))  # type: ignore[attr-defined]
        group.command(name, help=help)(guarded)
        return guarded

    return register


def _parameters(
    parameters: Mapping[str, inspect.Parameter], shared: Any, hints: Mapping[str, Any]
) -> list[inspect.Parameter]:
    """Return a command's parameters: the body's own ones, then the fields of ``shared``, output options last."""
    fields = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=getattr(shared, name, inspect.Parameter.empty),
            annotation=hint,
        )
        for name, hint in sorted(hints.items(), key=lambda field: field[0] in ("as_json", "quiet", "verbose"))
    ]
    named = [parameter for parameter in parameters.values() if parameter.name != "options"]
    return [*(parameter.replace(kind=parameter.KEYWORD_ONLY) for parameter in named), *fields]


def _user_error(problem: BaseException) -> UserFacingError | None:
    """Return the error to show to the user, or None if the problem is a bug."""
    if isinstance(problem, KeyboardInterrupt):
        return Interrupted(signal.SIGINT)
    if isinstance(problem, Exception) and not isinstance(problem, UserFacingError):
        error = os_errors.explained(problem)
        if error is not None:
            error.__cause__ = problem
        return error
    assert isinstance(problem, UserFacingError)
    return problem


def _reports_error() -> bool:
    """Tell whether this rank reports the error. A rank that failed alone first joins the others, to find out."""
    if not ranks.is_first():
        interrupts.leave()
        from distillctl.training import collectives

        collectives.join()
        interrupts.ignore()
    return ranks.reports_error()


def _open(
    options: RecipeOptions, defaults: Sequence[str] = (), overrides: Sequence[str] = ()
) -> tuple[Recipe, Workspace]:
    """Load the recipe, and return it with its run directory. defaults: settings before --set; overrides: after it."""
    from distillctl import recipe
    from distillctl.run_dir.workspace import Workspace
    from distillctl.trust import approvals

    trust = options.trust if isinstance(options, CollectOptions) else None
    approvals.configure(trust or (), remote_code=isinstance(options, StageOptions) and options.trust_remote_code)
    loaded = recipe.load(options.recipe, [*defaults, *(options.set_ or ()), *overrides])
    workspace = Workspace(options.run_dir or Path("runs") / loaded.name)
    if os.path.lexists(workspace.root) and not workspace.root.is_dir():
        raise UnavailableError(
            "the run directory is not a folder", where=str(workspace.root), next="choose another one with --run-dir"
        )
    return loaded, workspace


def _plan(recipe: Recipe, workspace: Workspace, stages: list[str]) -> None:
    from distillctl.commands import dry_run, output

    if not ranks.is_first():
        return
    plan = dry_run.plan(recipe, workspace, stages)
    console.result(plan, *output.plan(plan))


# ── the stages ───────────────────────────────────────────────────────────────────────────────────


@command("collect", "Ask the teacher for soft labels under the full context, and score what to compare with.")
def collect(options: CollectOptions) -> None:
    _run_stage("collect", options)


def _run_stage(name: str, options: ReportOptions, overrides: Sequence[str] = ()) -> None:
    from distillctl import pipeline
    from distillctl.commands import findings, output

    loaded, workspace = _open(options, overrides=overrides)
    if options.dry_run:
        return _plan(loaded, workspace, [name])
    result = pipeline.stage(name, loaded, workspace, force=options.force)
    console.result(output.as_json(result), *findings.readable(result))


@command("train", "Train the student on the simplified context.")
def train(options: StageOptions) -> None:
    _run_stage("train", options)


@command("export", "Write ONNX, checked against PyTorch; with --bundle, everything that an app needs.")
def export(
    options: StageOptions,
    bundle: Annotated[
        bool, typer.Option("--bundle", help="Make bundle/ and bundle.zip from the graph that quantize chose.")
    ] = False,
    text_in: Annotated[
        bool, typer.Option("--text-in", help="Also put a graph that contains its tokenizer into the bundle.")
    ] = False,
) -> None:
    if text_in and not bundle:
        raise UsageError("--text-in needs --bundle", next=f"distillctl export {options.recipe} --bundle --text-in")
    _run_stage("bundle" if bundle else "export", options, ["bundle.text_in=true"] * text_in)


@command("quantize", "Build smaller ONNX graphs, and keep the best one that passes the gate on quality.")
def quantize(options: StageOptions) -> None:
    _run_stage("quantize", options)


@command(
    "bench",
    "Measure latency, memory and size the way a phone would see them. With --serve, measure on a phone itself; with "
    "--against, only find out whether the deployed graph is slower or larger than another run's.",
)
def bench(
    options: StageOptions,
    serve: Annotated[
        bool, typer.Option("--serve", help="Serve a page on which a phone's browser measures the deployed graph.")
    ] = False,
    host: Annotated[
        str | None,
        typer.Option(
            metavar="ADDR", help="Address to listen on; 0.0.0.0 is every network.", show_default="this machine"
        ),
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, metavar="N", help="Port to listen on.", show_default="any free port")
    ] = None,
    assets: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder with onnxruntime-web's files.", show_default="the cache, filled by npm"
        ),
    ] = None,
    devices: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Stop after the results of N devices.", show_default="1")
    ] = None,
    serve_seconds: Annotated[
        float | None,
        typer.Option(min=1, metavar="S", help="Stop after S seconds without a request.", show_default="600"),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option("--quick", help=f"Measure little, while developing: {' '.join(f'--set {key}' for key in QUICK)}."),
    ] = False,
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Compare with this run directory's graph; exit 6 if worse.", show_default=False
        ),
    ] = None,
    max_slowdown: Annotated[
        str | None, typer.Option(metavar="SHARE", help="Allowed slowdown of the median latency.", show_default="5%")
    ] = None,
    max_size_growth: Annotated[
        str | None, typer.Option(metavar="SHARE", help="Allowed growth of the graph's bytes.", show_default="2%")
    ] = None,
    max_seconds: Annotated[
        float | None, typer.Option(min=1, metavar="S", help="Stop undecided after S seconds.", show_default="300")
    ] = None,
    undecided: Annotated[
        Literal["pass", "fail"] | None,
        typer.Option(help="Let an undecided comparison pass, with a warning, or fail.", show_default="pass"),
    ] = None,
    junit: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the verdict as JUnit XML.", show_default=False)
    ] = None,
    summary: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Append the verdict as Markdown.", show_default="$GITHUB_STEP_SUMMARY, if set"
        ),
    ] = None,
) -> None:
    from distillctl import pipeline
    from distillctl.commands import findings, output

    given = {"host": host, "port": port, "assets": assets, "devices": devices, "idle_seconds": serve_seconds}
    given = {name: value for name, value in given.items() if value is not None}
    if given and not serve:
        raise UsageError("--host, --port, --assets, --devices and --serve-seconds belong to --serve")
    gate: dict[str, Any] = {
        "--max-slowdown": max_slowdown,
        "--max-size-growth": max_size_growth,
        "--max-seconds": max_seconds,
    }
    gate |= {"--undecided": undecided, "--junit": junit, "--summary": summary}
    if against is None and any(value is not None for value in gate.values()):
        raise UsageError(f"{', '.join(gate)} belong to --against")
    if against is not None and (options.force or options.dry_run or serve):
        raise UsageError("--against cannot be combined with --force, --dry-run or --serve")
    if serve and (options.force or options.dry_run):
        raise UsageError("--serve cannot be combined with --force or --dry-run")
    loaded, workspace = _open(options, QUICK if quick else ())
    if quick and loaded.bench.loadgen:
        loaded, workspace = _open(options, [*QUICK, *QUICK_LOADGEN])
    if options.dry_run:
        return _plan(loaded, workspace, ["bench"])
    if against is not None:
        from distillctl.regression import compare
        from distillctl.regression import output as verdicts

        bounds = compare.bounds(max_slowdown, max_size_growth, max_seconds)
        verdict = compare.compare(loaded, workspace, against, bounds)
        verdicts.emit(verdict, undecided_fails=undecided == "fail", junit=junit, summary=summary)
    elif serve:
        results = pipeline.serve(loaded, workspace, **given)
        console.result(
            {"stage": "devices", "devices": [result.as_json() for result in results]}, *findings.devices(results)
        )
    else:
        result = pipeline.stage("bench", loaded, workspace, force=options.force)
        console.result(output.as_json(result), *findings.readable(result))


def _report_schema(wanted: bool) -> None:
    if wanted:
        from distillctl.report.schema import schema

        console.print_json(schema())
        raise typer.Exit


@command("report", "Write one self-contained HTML page, or print a summary for CI.")
def report(
    options: ReportOptions,
    format: Annotated[
        Literal["html", "md", "json"], typer.Option("--format", help="Write the HTML page, or print Markdown or JSON.")
    ] = "html",
    fail_under: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Exit 6 if recovered, recovered.ARM or an arm's score is lower or not known; repeatable.",
            show_default=False,
        ),
    ] = None,
    schema: Annotated[
        bool,
        typer.Option(
            "--schema", callback=_report_schema, is_eager=True, help="Print the JSON Schema of --format json, and exit."
        ),
    ] = False,
) -> None:
    from distillctl import pipeline
    from distillctl.commands import findings, output

    if options.as_json and format == "md":
        raise UsageError("--json cannot be combined with --format md")
    loaded, workspace = _open(options)
    from distillctl.report import fail_under as bounds
    from distillctl.report.facts import ReportFacts

    wanted = bounds.parse(fail_under or (), loaded)
    if options.dry_run:
        return _plan(loaded, workspace, ["report"])
    result = pipeline.stage("report", loaded, workspace, force=options.force)
    facts = result.manifest.read(ReportFacts)
    if options.as_json:
        bounds.check_bounds(wanted, facts)  # before printing: the error's JSON object has these facts
    if format == "md":
        from distillctl.report.markdown import render

        console.text(render(facts))
    elif format == "json":
        console.print_json(result.manifest.facts)
    else:
        console.result(output.as_json(result), *findings.readable(result), output.report_path(workspace))
    bounds.check_bounds(wanted, facts)


@command("run", "Run all stages in order, and skip what is fresh (like make).")
def run(options: CollectOptions) -> None:
    from distillctl import pipeline
    from distillctl.commands import findings, output

    loaded, workspace = _open(options)
    if options.dry_run:
        return _plan(loaded, workspace, [name for name, stage in pipeline.STAGES.items() if not stage.on_request])
    done = []
    for result in pipeline.run(loaded, workspace, force=options.force):
        if result.reused:
            console.note(output.line(result))
        elif result.stage != "report":
            console.intermediate(*findings.readable(result))
        done.append(result)
    summary = output.as_json(done[-1]) | {"stages": {result.stage: output.brief(result) for result in done}}
    console.result(summary, *findings.readable(done[-1]), output.report_path(workspace))


# ── bundles ──────────────────────────────────────────────────────────────────────────────────────

bundles = typer.Typer(
    help="Check what `distillctl export RECIPE --bundle` made.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(bundles, name="bundle")


@bundles.callback()
def _bundles() -> None:
    pass  # without a callback, a group of one command would become that command


@command("verify", "Check names, sizes and hashes, open every graph, and ask it for the recorded answer.", bundles)
def verify(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="The bundle: a folder or a .zip.", show_default=False)],
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    from distillctl.bundle.verify import verify as check
    from distillctl.commands import output

    facts = check(path)
    console.result(facts, *output.verified(facts))


# ── other commands ───────────────────────────────────────────────────────────────────────────────


@command("status", "Say which stages are fresh, stale, missing or damaged, and why.")
def status(options: RecipeOptions) -> None:
    from distillctl import pipeline
    from distillctl.commands import output

    loaded, workspace = _open(options)
    workspace.check()
    states = list(pipeline.status(loaded, workspace))
    rows = [{"stage": s.stage, "state": s.state, "why": list(s.why), "next": s.next or None} for s in states]
    console.result({"run_dir": str(workspace.root), "stages": rows}, *output.states(states))


@command("init", "Write a commented recipe to start from.")
def init(
    directory: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="The folder to create.", show_default=False)
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the recipe's JSON Schema, for editors.")] = False,
    as_json: Json = False,
) -> None:
    from distillctl.commands import init

    if schema:
        console.print_json(init.schema())
        return
    if directory is None:
        raise UsageError("give a folder, or --schema", next="distillctl init my-recipe")
    created = init.write(directory)
    console.result(
        {"created": [str(path) for path in created]},
        *[f"created {path}" for path in created],
        f"next: edit {created[0]}, then  distillctl run {created[0]} --dry-run",
    )


@command("guide", "Explain a topic, such as recipes or safety; without one, list the topics.")
def guide(
    topic: Annotated[str | None, typer.Argument(metavar="TOPIC", help="The topic.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    from distillctl import guide as guides
    from distillctl.terminal.text_table import TextTable

    if topic is None:
        topics = guides.topics()
        table = TextTable(("topic", "what it is for"), text=(0, 1))
        for entry in topics:
            table.add_row(entry.name, entry.summary)
        console.result({"topics": [{"topic": entry.name, "summary": entry.summary} for entry in topics]}, table)
        return
    page = guides.topic(topic)
    if console.is_json():
        console.print_json({"topic": page.name, "summary": page.summary, "markdown": page.markdown})
    elif console.stdout_is_terminal():
        from distillctl.guide.terminal import Page

        console.readable(Page(page.for_terminal()))
    else:
        console.text(page.markdown)


@command("doctor", "List versions, processor features, and what is missing.")
def doctor(as_json: Json = False) -> None:
    from distillctl.commands import doctor, output

    findings = doctor.examine()
    console.result(findings, *output.diagnosis(findings))
    if findings["missing"]:
        raise typer.Exit(5)


def _version(wanted: bool) -> None:
    if wanted:
        console.text(f"distillctl {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the console script.

    One of several ranks ends at once after its last message: gloo's threads may still hold Python objects, and shutting
    the interpreter down around them can abort it (https://github.com/pytorch/pytorch/pull/179291).
    """
    streams.guard()
    try:
        ended = app(prog_name="distillctl", standalone_mode=False)
    except _Misused as problem:
        ended = _misused(problem)
    except SystemExit as exit:
        ended = exit.code
    code = _code(ended)
    if ranks.count() == 1:
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


_Misused: type[Exception] = typer.BadParameter.__mro__[1]
"""Click's UsageError, of which typer has a copy that it does not export."""


def _misused(problem: Any) -> int:
    """Print what is wrong with the command line, unless the help was asked for by giving no arguments at all."""
    misuse = UsageError(
        problem.format_message(), next=f"{problem.ctx.command_path if problem.ctx else 'distillctl'} -h"
    )
    if type(problem).__name__ != "NoArgsIsHelpError":
        console.configure(as_json="--json" in sys.argv, verbosity=0)
        console.error(misuse)
    return misuse.exit_code


def _code(ended: object) -> int:
    """Return the exit code; it is not 0 if the result got lost on stdout."""
    code = ended if isinstance(ended, int) else int(bool(ended))
    if (lost := streams.lost()) is None or code != 0:
        return code
    problem = UnavailableError(
        f"cannot be written: {lost.strerror}",
        where="standard output",
        next="free some space or write elsewhere, and run the same command again: what was committed is kept",
    )
    console.error(problem)
    return problem.exit_code


if __name__ == "__main__":
    main()
