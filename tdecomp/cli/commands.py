"""The commands: what can be typed, the job that is called, and how its report is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tdecomp import __version__, jobs
from tdecomp._nearest import among
from tdecomp.adapters import CATALOGUE, Spec
from tdecomp.cli.basis_command import BASIS
from tdecomp.cli.check_command import CHECK
from tdecomp.cli.collection_commands import COLLECTION_COMMANDS
from tdecomp.cli.export_command import EXPORT
from tdecomp.cli.extensions import add_commands
from tdecomp.cli.merge_command import MERGE
from tdecomp.cli.options import (
    DTYPE_NAMES,
    HOW_SMALL,
    NO_VALUE,
    OUTPUT,
    AllowMissing,
    Base,
    Dask,
    Device,
    Exclude,
    ExploredMethods,
    Json,
    Layers,
    LoraRank,
    MaxMemory,
    Method,
    Modes,
    NoHash,
    NoMmap,
    Out,
    Overwrite,
    PartOf,
    Pattern,
    Quiet,
    RankPattern,
    Scratch,
    Share,
    Targets,
    Task,
    Timeout,
    Torchrun,
    Tuned,
    as_budget,
    as_error,
    examples,
    to_draw,
    to_write,
)
from tdecomp.cli.screen import Screen, printable
from tdecomp.cli.shown.adapters import adapter_lines, adapters_table
from tdecomp.cli.shown.exploration import explore_lines, explore_table
from tdecomp.cli.shown.factors import factors_table, left_out_lines, size_line
from tdecomp.cli.shown.lora import lora_lines
from tdecomp.cli.shown.model import model_table
from tdecomp.cli.shown.shared import task_line
from tdecomp.cli.shown.tables import left_out_table, not_covered_table, unknown_lines
from tdecomp.cli.shown.verification import agreement_line, verify_table
from tdecomp.cli.words import (
    check_one_of,
    parse_budget,
    parse_memory,
    parse_modes,
    parse_names,
    parse_part,
    parse_rank,
    parse_selection,
)
from tdecomp.errors import ArgumentError
from tdecomp.files.peft_lora import VLLM_RANKS
from tdecomp.files.storage import shown
from tdecomp.picture import draw

__all__ = ["app"]

app = typer.Typer(
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Factorise what fine-tuning changed, and say how true the result is.",
)


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[
        bool, typer.Option("--version", metavar=NO_VALUE, help="Print the version.")
    ] = False,
) -> None:
    """Decompose what fine-tuning changed."""
    if show:
        print(__version__)
        raise typer.Exit()


@app.command(
    no_args_is_help=True,
    epilog=examples("inspect MODEL", "inspect MODEL --pattern 'blocks.{layer}.att.{proj}'"),
)
def inspect(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL",
            help="Model folder, .safetensors file or index.json.",
            show_default=False,
        ),
    ],
    targets: Targets = None,
    exclude: Exclude = None,
    layers: Layers = None,
    pattern: Pattern = None,
    share: Share = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Show the family, sites and groups of a model, and what would not be covered."""
    screen = Screen(quiet, as_json)
    selection = parse_selection(targets, exclude, layers, pattern, share)
    report = jobs.inspect(model, selection=selection)
    screen.out.print(model_table(report))
    if report.uncovered:
        screen.out.print(left_out_table(report.uncovered))
    screen.lines(f"Note: {note}" for note in report.notes)
    screen.report(report.to_json())


@app.command(
    no_args_is_help=True,
    epilog=examples(
        "decompose BASE TUNED -o OUT --budget 240k",
        "decompose BASE TUNED -o OUT --method tucker2 --rank 64,32 --targets q_proj,v_proj",
    ),
)
def decompose(
    base: Base,
    tuned: Tuned,
    *,
    method: Method = "svd",
    modes: Modes = None,
    rank: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="'16', or per compressed mode '64,32', or 'layer=4,out=64'.",
            rich_help_panel=HOW_SMALL,
        ),
    ] = None,
    error: Annotated[
        float | None, as_error("Relative error over everything covered, 0 to 1.")
    ] = None,
    budget: Annotated[
        str | None,
        as_budget("Numbers to store, '60000', '60k', '1.5M', or bytes at the file's dtype, '2MB'."),
    ] = None,
    rank_max: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="The largest rank that --error or --budget may give.",
            rich_help_panel=HOW_SMALL,
        ),
    ] = None,
    dtype: Annotated[
        str,
        typer.Option(
            metavar="DTYPE", help=f"Of the factors: {DTYPE_NAMES}.", rich_help_panel=HOW_SMALL
        ),
    ] = "float32",
    targets: Targets = None,
    exclude: Exclude = None,
    layers: Layers = None,
    pattern: Pattern = None,
    share: Share = None,
    allow_missing: AllowMissing = False,
    device: Device = None,
    max_memory: MaxMemory = None,
    no_mmap: NoMmap = False,
    no_hash: NoHash = False,
    dask: Dask = None,
    part: PartOf = None,
    scratch: Scratch = None,
    timeout: Timeout = 600.0,
    torchrun: Torchrun = False,
    out: Annotated[Path, to_write("OUT", "Folder to write.")],
    lora: Annotated[
        bool,
        typer.Option(
            "--lora",
            metavar=NO_VALUE,
            help="Also write a PEFT LoRA folder, OUT/lora.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    lora_rank: LoraRank = VLLM_RANKS[-1],
    rank_pattern: RankPattern = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Factorise TUNED - BASE, by exactly one of --rank, --error and --budget."""
    check_one_of({"--rank": rank, "--error": error, "--budget": budget})
    if not lora and (rank_pattern or lora_rank != VLLM_RANKS[-1]):
        message = "--lora-rank and --rank-pattern say how --lora is written"
        raise ArgumentError(message, tip="add --lora")
    screen = Screen(quiet, as_json)
    workers = _workers(dask, part, scratch, timeout, torchrun)
    selection = parse_selection(targets, exclude, layers, pattern, share)
    asked = {
        "method": method,
        "modes": parse_modes(modes),
        "rank": None if rank is None else parse_rank(rank),
        "error": error,
        "budget": None if budget is None else parse_budget(budget, dtype),
        "rank_max": rank_max,
        "dtype": dtype,
    }
    job = {"base": base, "tuned": tuned, **asked, **selection.to_json()}
    if not workers.leads:
        screen.lines([_served(workers.serve(job, screen.note))])
        return
    with workers.executor(job, screen.note) as executor, screen.steps() as progress:
        report = jobs.decompose(
            base,
            tuned,
            out,
            **asked,
            selection=selection,
            lora=_lora(lora_rank, rank_pattern) if lora else None,
            machine=jobs.Machine(
                device, parse_memory(max_memory), not no_mmap, executor, progress.passed
            ),
            allow_missing=allow_missing,
            hashes=not no_hash,
            overwrite=overwrite,
            progress=progress,
        )
    screen.lines(unknown_lines(report.unknown))
    if report.zero_delta:
        screen.lines(["BASE and TUNED are equal: the factors are zero, and change nothing."])
    else:
        screen.out.print(factors_table(report))
        screen.lines([size_line(report), *left_out_lines(report)])
        if report.uncovered:
            screen.out.print(not_covered_table(report.uncovered, limit=6))
    if report.lora is not None:
        screen.lines(lora_lines(report.lora, f"{shown(out)}/lora"))
    screen.lines([f"Written to {shown(out)}."])
    screen.report(report.to_json())


@app.command(
    no_args_is_help=True,
    epilog=examples(
        "explore BASE TUNED",
        "explore BASE TUNED --budget 240k --budget 2MB --method svd,tucker -o table.json",
    ),
)
def explore(
    base: Base,
    tuned: Tuned,
    budget: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SIZE",
            help="Numbers to store, '60k', or bytes in float32, '2MB'; can be repeated. By default "
            "1/256 to 1/16 of the delta.",
            rich_help_panel=HOW_SMALL,
        ),
    ] = None,
    method: ExploredMethods = None,
    formats: Annotated[str | None, typer.Option(hidden=True)] = None,
    targets: Targets = None,
    exclude: Exclude = None,
    layers: Layers = None,
    pattern: Pattern = None,
    share: Share = None,
    allow_missing: AllowMissing = False,
    device: Device = None,
    max_memory: MaxMemory = None,
    no_mmap: NoMmap = False,
    dask: Dask = None,
    part: PartOf = None,
    scratch: Scratch = None,
    timeout: Timeout = 600.0,
    torchrun: Torchrun = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="JSON file to write the report to.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Compare methods for TUNED - BASE: error against stored numbers, from a few reads."""
    screen = Screen(quiet, as_json)
    workers = _workers(dask, part, scratch, timeout, torchrun)
    selection = parse_selection(targets, exclude, layers, pattern, share)
    asked = {
        "budgets": [parse_budget(text, "float32") for text in budget] if budget else None,
        "methods": parse_names(formats if method is None else method),
    }
    job = {"base": base, "tuned": tuned, **asked, **selection.to_json()}
    if not workers.leads:
        screen.lines([_served(workers.serve(job, screen.note))])
        return
    with workers.executor(job, screen.note) as executor, screen.steps() as progress:
        report = jobs.explore(
            base,
            tuned,
            **asked,
            selection=selection,
            out=out,
            machine=jobs.Machine(
                device, parse_memory(max_memory), not no_mmap, executor, progress.passed
            ),
            allow_missing=allow_missing,
            overwrite=overwrite,
            progress=progress,
        )
    screen.lines(unknown_lines(report.unknown))
    if report.zero_delta:
        screen.lines(["BASE and TUNED are equal in all that is covered: nothing to compare."])
    else:
        screen.out.print(explore_table(report))
        screen.lines(explore_lines(report))
    if out is not None:
        screen.lines([f"Written to {shown(out)}."])
    screen.report(report.to_json())


@app.command(
    no_args_is_help=True,
    epilog=examples("verify OUT BASE TUNED", "verify OUT BASE TUNED --quiet && echo true"),
)
def verify(
    out: Out,
    base: Base,
    tuned: Tuned,
    every: Annotated[
        bool,
        typer.Option(
            "--all",
            metavar=NO_VALUE,
            help="Show the sites that agree, too.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure the error again from the files; exit code 1 if it differs from what OUT claims."""
    screen = Screen(quiet, as_json)
    with screen.steps() as progress:
        report = jobs.verify(out, base, tuned, progress=progress)
    screen.lines(unknown_lines(report.unknown))
    if every or not report.agrees:
        screen.out.print(verify_table(report, whole=every))
    screen.lines([agreement_line(report)])
    for name in report.changed_files:
        screen.note(f"{name} is not the file the factors were made from (other size or hash)")
    screen.report(report.to_json())
    if not report.agrees:
        line = (
            f"tdecomp: {shown(out)} claims a relative error of {report.claimed:.6g}, "
            f"measured {report.measured:.6g}"
        )
        typer.echo(printable(line), err=True)
        raise typer.Exit(1)


@app.command(
    no_args_is_help=True,
    epilog=examples("apply OUT BASE -o MODEL", "apply OUT BASE -o MODEL --dtype bfloat16"),
)
def apply(
    out: Out,
    base: Base,
    model: Annotated[Path, to_write("MODEL", "Model folder to write.")],
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="DTYPE",
            help=f"Cast all floating tensors: {DTYPE_NAMES}.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    task: Task = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Write BASE + decoded delta as a model folder: same shards, dtype and extra files."""
    screen = Screen(quiet)
    if task is not None:
        with screen.steps() as progress:
            told = jobs.apply_task(
                out, task, base, model, dtype=dtype, overwrite=overwrite, progress=progress
            )
        screen.lines([task_line(told)])
        return
    with screen.steps() as progress:
        report = jobs.apply(out, base, model, dtype=dtype, overwrite=overwrite, progress=progress)
    for line in (*(f"Note: {note}" for note in report.notes), *unknown_lines(report.unknown)):
        screen.note(line)
    screen.lines([f"Changed {len(report.changed)} tensors; model in {shown(model)}."])


app.command("export", no_args_is_help=True, epilog=examples(*EXPORT.examples))(EXPORT.function)


@app.command(no_args_is_help=True, epilog=examples("info OUT", "info OUT --picture factors.svg"))
def info(
    out: Out,
    picture: Annotated[Path | None, to_draw("the factors")] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Show what a factors file holds."""
    screen = Screen(quiet, as_json)
    report = jobs.info(out, picture=picture, overwrite=overwrite)
    screen.lines(unknown_lines(report.unknown))
    screen.out.print(factors_table(report))
    screen.lines([size_line(report)])
    if picture is not None:
        screen.lines([f"Written to {shown(picture)}."])
    screen.report(report.to_json())


@app.command(
    no_args_is_help=True,
    epilog=examples("report OUT -o report.html", "report table.json OUT -o report.html"),
)
def report(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="SOURCE",
            help="Folders that 'decompose' wrote, and files that 'explore -o' wrote.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, to_write("FILE", "HTML file to write.")],
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Draw factors and explorations on one page that needs no network and no scripts."""
    screen = Screen(quiet, as_json)
    with screen.steps() as progress:
        made = jobs.report(sources, out, overwrite=overwrite, progress=progress)
    screen.lines([f"Written to {shown(out)}."])
    screen.report(made.to_json())


Name = Annotated[
    str | None,
    typer.Argument(metavar="NAME", help="Show one row, whole.", show_default=False),
]


@app.command(epilog=examples("adapters", "adapters lotr --picture lotr.svg"))
def adapters(
    name: Name = None,
    picture: Annotated[Path | None, to_draw("the row")] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """List the adapters that 'tdecomp_torch.attach' knows by name."""
    screen = Screen(quiet, as_json)
    if picture is not None and name is None:
        raise ArgumentError("--picture draws one row", tip="name it: tdecomp adapters lotr")
    rows = list(CATALOGUE.values()) if name is None else [_adapter(name)]
    if picture is not None:
        draw(rows[0]).save(picture, overwrite=overwrite)
    if name is None:
        screen.table(adapters_table(rows))
    else:
        screen.lines(adapter_lines(rows[0]))
    if picture is not None:
        screen.lines([f"Written to {shown(picture)}."])
    screen.report({spec.name: spec.to_json() for spec in rows})


@app.command(hidden=True)
def methods(name: Name = None, quiet: Quiet = False, as_json: Json = False) -> None:
    """Old name of 'adapters'."""
    Screen(quiet, as_json).note("Note: 'tdecomp methods' is called 'tdecomp adapters' now")
    adapters(name, quiet=quiet, as_json=as_json)


def _adapter(name: str) -> Spec:
    """A row of the catalogue; an error tells the nearest three."""
    wanted = name.lower().replace("-", "_")
    if wanted in CATALOGUE:
        return CATALOGUE[wanted]
    tip = f"there are {among(wanted, CATALOGUE)}; see 'tdecomp adapters'"
    raise ArgumentError(f"no adapter {name!r} is known", tip=tip)


def _lora(rank: int, rank_pattern: bool) -> jobs.LoraOptions:
    return jobs.LoraOptions(max_rank=rank, rank_pattern=rank_pattern)


for _name, _command in {
    **COLLECTION_COMMANDS,
    "basis": BASIS,
    "check": CHECK,
    "merge": MERGE,
}.items():
    _add = app.command(_name, no_args_is_help=True, epilog=examples(*_command.examples))
    _add(_command.function)
add_commands(app)


def _workers(
    dask: str | None, part: str | None, scratch: Path | None, timeout: float, torchrun: bool
) -> jobs.Workers:
    return jobs.Workers(
        dask=dask, part=parse_part(part), scratch=scratch, timeout=timeout, torchrun=torchrun
    )


def _served(count: int) -> str:
    """What a process says that does not lead."""
    return f"Done: {count} tasks of this job were done here."
