"""The command line. Everything heavy is imported inside the command that needs it, so that ``--help`` is quick."""

import os
import shlex
import signal
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from scenarios.said import complaint, printable

app = typer.Typer(
    name="distill",
    help="A data set's knowledge in a handful of synthetic images: make them, judge them, use them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting; may be repeated.")]
Out = Annotated[Path, typer.Option(help="Where run folders go.")]
Seed = Annotated[int, typer.Option(min=0, help="Same seed, same bits.")]
Grid = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE[,VALUE...]", help="Change one setting; may be repeated. Values between commas make a grid of runs."
    ),
]
Seeds = Annotated[str | None, typer.Option(metavar="A..B", help="Several seeds, for example 0..4 or 0,3,7: one run each.")]
Jobs = Annotated[int | None, typer.Option(help="Runs of a grid at a time; default: one a core as far as memory goes, one on a GPU.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or auto.")]
Root = Annotated[Path | None, typer.Option(help="Folder of the data sets; default: $DISTILL_DATA.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue a run that was stopped.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")]


@app.command()
def run(
    scenario: Annotated[str, typer.Argument(help="A .toml file, or a shipped scenario's name (distill list scenarios).")],
    settings: Grid = None,
    out: Out = Path("runs"),
    seed: Annotated[int | None, typer.Option(min=0, help="Same seed, same bits; default 0.")] = None,
    seeds: Seeds = None,
    jobs: Jobs = None,
    device: Device = "auto",
    data_root: Root = None,
    resume: Resume = False,
    quiet: Quiet = False,
) -> None:
    """Run a study from a scenario file; leaves a run folder with its record, sets, figures and report.

    With --seeds 0..4, or several values in a --set (method.ipc=1,10,50; a list like [1,10] is one value), all combinations are run, in
    parallel; those that are done are skipped. `distill table` puts them together.
    """
    from distill.errors import InputError
    from scenarios import grid
    from scenarios.schema import override, read_scenario, study

    if seed is not None and seeds is not None:
        raise InputError("--seed and --seeds are both given; allowed: one of them.")
    combinations, numbers = grid.combinations(settings or []), [seed or 0] if seeds is None else grid.seeds(seeds)
    if len(combinations) * len(numbers) > 1:
        _sweep(scenario, combinations, numbers, jobs, quiet, out=out, device=_device(device), data_root=data_root, resume=resume)
    name, tables = read_scenario(scenario)
    source = scenario if scenario.endswith(".toml") else f"{name}.toml"
    _study(study(name, override(tables, combinations[0][0]), source), out, numbers[0], device, data_root, resume, quiet)


@app.command()
def table(
    folders: Annotated[list[Path], typer.Argument(metavar="RUNS...", help="Run folders, or folders that hold some.")],
    form: Annotated[str, typer.Option("--format", help="text, markdown or csv.")] = "text",
    figures: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Figures by name, for example 'ipc*.accuracy.*' or '*'; may be repeated.")
    ] = None,
) -> None:
    """Print mean and 95 % interval over seeds; runs that differ in their seed only come together."""
    from distill.errors import InputError, unknown_name
    from scenarios import table as tables

    if form not in tables.FORMATS:
        raise unknown_name("format", form, tables.FORMATS)
    runs, left = tables.finished(tables.find_runs(folders))
    for line in left:
        typer.echo(printable(line), err=True)
    if not runs:
        raise InputError("none of the runs is done; finish one with --resume.")
    rows = tables.summary(runs, figures or [])
    if len(rows) == 1:
        raise tables.no_figures(runs, figures or [])
    typer.echo("\n".join(map(printable, tables.shown(rows, form).splitlines())))


@app.command()
def condense(
    data: Annotated[str, typer.Option(help="Data set: digits, mnist, ..., folder:PATH (distill list data).")],
    method: Annotated[str, typer.Option(help="Method (distill list methods).")] = "dm",
    ipc: Annotated[int, typer.Option(min=1, help="Images per class.")] = 1,
    settings: Set = None,
    out: Out = Path("runs"),
    seed: Seed = 0,
    device: Device = "auto",
    data_root: Root = None,
    resume: Resume = False,
    quiet: Quiet = False,
) -> None:
    """Condense a data set without a scenario file; ``--set`` takes the method's settings, for example ``--set iterations=300``."""
    from scenarios.schema import override, study

    table = override({}, settings or [])
    tables = {"kind": "condense", "data": {"name": data}, "method": {"name": method, "ipc": ipc, **table}}
    _study(study("condense", tables, "distill condense"), out, seed, device, data_root, resume, quiet)


@app.command()
def evaluate(
    condensed: Annotated[Path, typer.Argument(metavar="SET.safetensors", help="A condensed set's file.")],
    data: Annotated[str, typer.Option(help="The data set that it was made from.")],
    network: Annotated[list[str] | None, typer.Option(help="Network; repeat for cross-architecture. Default: ConvNet.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Networks trained for each set.")] = 5,
    protocol: Annotated[str, typer.Option(help="dc, dsa, dm or laptop.")] = "laptop",
    baseline: Annotated[list[str] | None, typer.Option(help="random, herding, kcenter, kmeans, class_mean, whole or none; repeat.")] = None,
    device: Device = "auto",
    data_root: Root = None,
) -> None:
    """Train networks on a condensed set and on its rivals, and print test accuracies with their intervals."""
    from apps.privacy.statement import guarantee
    from distill.condensed import CondensedSet
    from distill.data_sources import load
    from distill.evaluation import evaluate as judge
    from distill.networks import check_name
    from distill.train import protocol as named
    from scenarios import own

    networks = network or ["ConvNet"]
    own.register("condense", {"evaluation": {"networks": networks}}, "distill evaluate")
    for name in networks:
        check_name(name)
    where = _device(device)
    tiny = CondensedSet.load(condensed).to(where)
    images = load(data, data_root, device=where, size=_resized(tiny, data))
    rivals = [] if baseline == ["none"] else baseline or ["random", "whole"]
    typer.echo(str(judge(tiny, images, network=networks, recipe=named(protocol, images.spec), seeds=seeds, baselines=rivals)))
    if tiny.provenance.dp:
        typer.echo(printable(guarantee(tiny.provenance.dp)))


@app.command()
def show(
    condensed: Annotated[Path, typer.Argument(metavar="SET.safetensors", help="A condensed set's file.")],
    out: Annotated[Path | None, typer.Option(help="The picture; default: beside the set.")] = None,
) -> None:
    """Print what a set is and where it comes from, and draw its images."""
    from apps.privacy.statement import guarantee
    from distill.condensed import CondensedSet
    from distill.errors import clipped
    from distill.figures import image_grid
    from distill.records import write_whole

    tiny = CondensedSet.load(condensed)
    origin, spec = tiny.provenance, tiny.spec
    picture = out or condensed.with_suffix(".png")
    write_whole(picture, image_grid(tiny))
    counts = f"{tiny.ipc} a class" if len({c for c in tiny.counts if c}) == 1 else f"counts {tiny.counts}"
    lines = [
        f"{len(tiny)} images of {spec.channels} x {spec.height} x {spec.width} ({counts}), {tiny.nbytes} bytes",
        f"data {spec.name}: {spec.num_classes} classes ({', '.join(spec.classes[:10])}{', ...' if spec.num_classes > 10 else ''})",
        f"method {origin.method}, seed {origin.seed}, {origin.seconds:.0f} s, augmentation {tiny.augmentation or 'none'}",
        f"settings {', '.join(f'{k}={v}' for k, v in origin.config.items()) or 'none'}",
        f"privacy guarantee: {guarantee(origin.dp) if origin.dp else 'none'}",
        f"picture: {picture}",
    ]
    typer.echo("\n".join(clipped(line, 2000) for line in lines))


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN_DIR...", help="One or more run folders.")],
    out: Annotated[Path | None, typer.Option(help="The page; default: report.html in the first folder.")] = None,
) -> None:
    """Write one self-contained HTML page about one or several runs."""
    from scenarios.report import write_report

    page = out or folders[0] / "report.html"
    write_report(folders, page)
    typer.echo(str(page))


@app.command("list")
def list_names(
    what: Annotated[str, typer.Argument(help="methods, data, networks or scenarios.")],
    data_root: Root = None,
) -> None:
    """List the names that the other commands take."""
    from distill.errors import unknown_name

    if what == "methods":
        from distill.methods import METHODS

        typer.echo("\n".join(f"{name:10} {(made.__doc__ or '').splitlines()[0]}" for name, (_, made) in METHODS.items()))
    elif what == "data":
        from distill.data_sources import describe

        typer.echo("\n".join(f"{name:16} {'ready  ' if there else 'missing'}  {text}" for name, text, there in describe(data_root)))
    elif what == "networks":
        from distill.networks import NAMES

        typer.echo("\n".join(NAMES))
    elif what == "scenarios":
        from scenarios.schema import parse, shipped

        typer.echo("\n".join(f"{name:20} {parse(path).get('title', '')}" for name, path in shipped().items()))
        from scenarios.template import DATA, FORMS, METHODS

        typer.echo(f"{', '.join(f'{form}-METHOD-DATA-ipcN' for form in FORMS)}: {', '.join(METHODS)} on {', '.join(DATA)}")
    else:
        raise unknown_name("list", what, ["methods", "data", "networks", "scenarios"])


def _study(made: Any, out: Path, seed: int, device: str, data_root: Path | None, resume: bool, quiet: bool) -> None:
    from scenarios.folder import Options, run_study
    from scenarios.report import accuracy_table, answer
    from scenarios.table import as_text

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's stop saves as Ctrl-C does
    try:
        folder, record = run_study(made, Options(out, data_root, seed, _device(device), resume, quiet))
    finally:
        signal.signal(signal.SIGTERM, before)
    if not quiet and record["results"]:
        if rows := accuracy_table(record):
            typer.echo(as_text(rows))
        typer.echo(answer(record))
        typer.echo(f"{record['seconds']:.0f} s, peak memory {record['peak_memory_bytes'] / 1e9:.2f} GB; everything is in {folder}")


def _sweep(scenario: str, combinations: Any, seeds: list[int], jobs: int | None, quiet: bool, **options: Any) -> NoReturn:
    from distill.errors import InputError
    from scenarios.sweep import sweep
    from scenarios.table import find_runs, shown, summary

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("a grid is shared out run by run; call it without torchrun.")

    def told(text: str) -> None:
        if not quiet:
            typer.echo(printable(text), err=True)

    done, failed = sweep(scenario, combinations, seeds, jobs=jobs, told=told, **options)
    rows = summary(find_runs(done)) if done and not quiet else []
    if len(rows) > 1:
        typer.echo(shown(rows, "text"))
    for label, (code, reason) in failed.items():
        lines = reason.splitlines()
        typer.echo("\n".join(map(printable, [f"failed: {label}: {reason}"] if code == 2 else [f"failed: {label}:", *lines])), err=True)
    raise typer.Exit(0 if not failed else 2 if all(code == 2 for code, _ in failed.values()) else 1)


def _device(name: str) -> str:
    import torch

    from distill.errors import InputError, unknown_name

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise unknown_name("device", name, ["cpu", "cuda", "auto"])
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device 'cuda' was asked for, and torch finds no GPU here; use --device cpu or auto.")
    return f"cuda:{os.environ['LOCAL_RANK']}" if name == "cuda" and "LOCAL_RANK" in os.environ else name


def _resized(tiny: Any, data: str) -> int | None:
    """Folders are cut to the set's own size, where it is square."""
    return tiny.spec.height if data.partition(":")[0] in ("folder", "mhist") and tiny.spec.height == tiny.spec.width else None


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 2 wrong input (one line), 1 our fault (traceback), 130 interrupted."""
    from distill.errors import InputError
    from distill.memory import keep_freed_memory

    keep_freed_memory()
    given = sys.argv[1:] if arguments is None else arguments
    try:
        code = app(args=given, prog_name="distill", standalone_mode=False)
    except InputError as error:
        _fail(f"error: {printable(str(error))}", 2)
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        # typer's own complaints about options (whichever click it carries) know how to say themselves.
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):
            _fail(f"error: {printable(complaint(error))} (see: distill --help)", 2)
        traceback.print_exc()
        sys.exit(1)
    if code == 130:  # typer turns Ctrl-C into this number
        resumable = given[:1] in (["run"], ["condense"])
        again = shlex.join(["distill", *given, *([] if "--resume" in given else ["--resume"])])
        _fail(f"interrupted; continue with: {again}" if resumable else "interrupted", 130)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(text: str, code: int) -> None:
    print(text, file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
