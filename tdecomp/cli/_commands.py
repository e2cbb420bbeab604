"""The commands: what can be typed, and how it is shown."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer

from tdecomp import __version__
from tdecomp.adapters import CATALOGUE, method
from tdecomp.cli import _explored, _job, _report
from tdecomp.cli._parse import (
    DTYPES,
    parse_budget,
    parse_dtype,
    parse_formats,
    parse_memory,
    parse_modes,
    parse_rank,
    parse_share,
)
from tdecomp.cli._screen import Screen, printable
from tdecomp.errors import ArgumentError
from tdecomp.files.factors import Factors, load_factors
from tdecomp.files.peft_lora import VLLM_RANKS
from tdecomp.stack import parse_layers, parse_targets

__all__ = ["app"]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Factorise what fine-tuning changed, and say how true the result is.",
)

Model = Annotated[
    Path, typer.Argument(help="Model folder, .safetensors file or index.json.", show_default=False)
]
Base = Annotated[Path, typer.Argument(help="The base model.", show_default=False)]
Tuned = Annotated[Path, typer.Argument(help="The fine-tuned model.", show_default=False)]
Out = Annotated[Path, typer.Argument(help="Folder that `decompose` wrote.", show_default=False)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
Json = Annotated[bool, typer.Option("--json", help="Print the report as JSON.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]
Targets = Annotated[
    str | None,
    typer.Option(help="As in PEFT: names or suffixes `q_proj,v_proj`, a regex, or `all-linear`."),
]
Exclude = Annotated[str | None, typer.Option(help="Names or a regex to leave out.")]
Layers = Annotated[str | None, typer.Option(help="Layers to keep: `0-5,8`.")]
Pattern = Annotated[
    list[str] | None,
    typer.Option(
        help="Where the sites are, instead of a known family: `blocks.{layer}.att.{proj}`."
    ),
]
Share = Annotated[
    str | None,
    typer.Option(
        help="Site modes stacked together: `layer,proj` (default: all of them), `head` for one "
        "slice per head, `site` for one flat mode, `none` for every matrix alone."
    ),
]
_BY_MODES = ("tucker", "tucker2")
LoraRank = Annotated[
    int, typer.Option(min=1, help="Widest LoRA pair; wider ones are truncated by SVD.")
]
Device = Annotated[
    str | None,
    typer.Option(help="Torch device to compute on, `cuda` or `cuda:1`; by default numpy."),
]
MaxMemory = Annotated[
    str | None,
    typer.Option(help="Refuse what would take more, `2GB`; by default half of what is free."),
]
AllowMissing = Annotated[
    bool,
    typer.Option(
        "--allow-missing",
        help="Go on when weights to be covered have no partner: what changed there stays unknown.",
    ),
]
RankPattern = Annotated[
    bool,
    typer.Option(
        help="Keep every module's own rank in `rank_pattern` (PEFT only) instead of padding."
    ),
]


def _selection(
    targets: str | None,
    exclude: str | None,
    layers: str | None,
    pattern: list[str] | None,
    share: str | None,
) -> _job.Selection:
    return _job.Selection(
        None if targets is None else parse_targets(targets),
        None if exclude is None else parse_targets(exclude),
        None if layers is None else parse_layers(layers),
        tuple(pattern or ()),
        parse_share(share),
    )


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Decompose what fine-tuning changed."""
    if show:
        print(__version__)
        raise typer.Exit()


@app.command()
def inspect(
    model: Model,
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
    selection = _selection(targets, exclude, layers, pattern, share)
    report = _report.inspect_report(*_job.inspect(model, selection))
    screen.out.print(_report.inspect_table(report))
    if report["uncovered"]:
        screen.out.print(_report.uncovered_table(report["uncovered"], "not covered"))
    for note in report["notes"]:
        screen.out.print(f"Note: {note}", highlight=False)
    _print_json(report, as_json)


@app.command()
def decompose(
    base: Base,
    tuned: Tuned,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.", show_default=False)],
    method: Annotated[str, typer.Option(help=f"One of {', '.join(_job.METHODS)}.")] = "svd",
    modes: Annotated[
        str | None,
        typer.Option(
            help="Modes that tucker (any) or tucker2 (two) compresses: `in` for one basis of the "
            "inputs alone, by default all, and `out,in`."
        ),
    ] = None,
    rank: Annotated[
        str | None, typer.Option(help="`16`, or per compressed mode `64,32`, or `layer=4,out=64`.")
    ] = None,
    error: Annotated[
        float | None, typer.Option(help="Relative error over everything covered, 0 to 1.")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="Numbers to store, `60000`, `60k`, `1.5M`, or bytes at the file's dtype, `2MB`."
        ),
    ] = None,
    targets: Targets = None,
    exclude: Exclude = None,
    layers: Layers = None,
    pattern: Pattern = None,
    share: Share = None,
    dtype: Annotated[str, typer.Option(help=f"Of the factors: {', '.join(DTYPES)}.")] = "float32",
    lora: Annotated[
        bool, typer.Option("--lora", help="Also write a PEFT LoRA folder, OUT/lora.")
    ] = False,
    lora_rank: LoraRank = VLLM_RANKS[-1],
    rank_pattern: RankPattern = False,
    device: Device = None,
    max_memory: MaxMemory = None,
    allow_missing: AllowMissing = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Factorise TUNED - BASE, by exactly one of --rank, --error and --budget."""
    if method not in _job.METHODS:
        raise ArgumentError(f"--method {method!r}: choose {', '.join(_job.METHODS)}")
    if modes is not None and method not in _BY_MODES:
        raise ArgumentError(f"--modes goes with --method {' or '.join(_BY_MODES)}, not {method}")
    code = parse_dtype(dtype) or "F32"
    given = [
        n for n, v in (("--rank", rank), ("--error", error), ("--budget", budget)) if v is not None
    ]
    if len(given) != 1:
        raise ArgumentError(
            f"give exactly one of --rank, --error and --budget, got {' and '.join(given) or 'none'}"
        )
    if not lora and (rank_pattern or lora_rank != VLLM_RANKS[-1]):
        raise ArgumentError("--lora-rank and --rank-pattern say how --lora is written: add --lora")
    target: dict[str, Any] = {
        "rank": None if rank is None else parse_rank(rank),
        "error": error,
        "budget": None if budget is None else parse_budget(budget, code),
    }
    screen = Screen(quiet, as_json)
    report = _job.decompose(
        base,
        tuned,
        out,
        method=method,
        modes=parse_modes(modes),
        target=target,
        selection=_selection(targets, exclude, layers, pattern, share),
        dtype=code,
        lora=_job.LoraOptions(lora_rank, rank_pattern, code) if lora else None,
        machine=_job.Machine(device, parse_memory(max_memory)),
        allow_missing=allow_missing,
        overwrite=overwrite,
        screen=screen,
    )
    _show_factors(report, screen)
    if report["uncovered"]:
        screen.out.print(_report.uncovered_table(report["uncovered"], "not covered", limit=6))
    if "lora" in report:
        _print_lines(_report.lora_lines(report["lora"], str(out / "lora")), screen)
    screen.out.print(f"Written to {out}.", highlight=False)
    _print_json(report, as_json)


@app.command()
def explore(
    base: Base,
    tuned: Tuned,
    budget: Annotated[
        list[str] | None,
        typer.Option(
            help="Numbers to store, `60k`, or bytes in float32, `2MB`; can be repeated. By default "
            "1/256 to 1/16 of the delta."
        ),
    ] = None,
    formats: Annotated[
        str | None,
        typer.Option(help=f"Some of {', '.join(_job.FORMATS)}; by default all but cp."),
    ] = None,
    targets: Targets = None,
    exclude: Exclude = None,
    layers: Layers = None,
    pattern: Pattern = None,
    share: Share = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="JSON file to write the report to.")
    ] = None,
    device: Device = None,
    max_memory: MaxMemory = None,
    allow_missing: AllowMissing = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Compare formats for TUNED - BASE: error against stored numbers, from a few reads."""
    screen = Screen(quiet, as_json)
    chosen = {
        "targets": targets,
        "exclude": exclude,
        "layers": layers,
        "pattern": pattern,
        "share": share,
        "allow-missing": allow_missing,
    }
    report = _job.explore(
        base,
        tuned,
        budgets=[parse_budget(text, "F32") for text in budget] if budget else None,
        formats=parse_formats(formats, _job.FORMATS),
        selection=_selection(targets, exclude, layers, pattern, share),
        out=out,
        machine=_job.Machine(device, parse_memory(max_memory)),
        allow_missing=allow_missing,
        overwrite=overwrite,
        screen=screen,
        command=lambda words: _explored.command(str(base), str(tuned), chosen, words),
    )
    _print_lines(_report.unknown_lines(report["unknown"]), screen)
    screen.out.print(_explored.explore_table(report))
    _print_lines(_explored.drawing(report), screen)
    _print_lines(_explored.explore_lines(report), screen)
    if out is not None:
        screen.out.print(f"Written to {out}.", highlight=False)
    _print_json(report, as_json)


@app.command()
def verify(out: Out, base: Base, tuned: Tuned, quiet: Quiet = False, as_json: Json = False) -> None:
    """Measure the error again from the files; exit code 1 if it differs from what OUT claims."""
    screen = Screen(quiet, as_json)
    report = _job.verify(out, base, tuned, screen=screen)
    _print_lines(_report.unknown_lines(report["unknown"]), screen)
    screen.out.print(_report.verify_table(report))
    for name in report["changed_files"]:
        screen.note(f"{name} is not the file the factors were made from (other size or hash)")
    _print_json(report, as_json)
    if not report["agrees"]:
        line = (
            f"tdecomp: {out} claims a relative error of {report['claimed']:.6g}, "
            f"measured {report['measured']:.6g}"
        )
        typer.echo(printable(line), err=True)
        raise typer.Exit(1)


@app.command()
def apply(
    out: Out,
    base: Base,
    model: Annotated[
        Path, typer.Option("--out", "-o", help="Model folder to write.", show_default=False)
    ],
    dtype: Annotated[
        str | None, typer.Option(help=f"Cast all floating tensors: {', '.join(DTYPES)}.")
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Write BASE + decoded delta as a model folder: same shards, dtype and extra files."""
    screen = Screen(quiet)
    code = parse_dtype(dtype)
    factors = _job.apply(out, base, model, dtype=code, overwrite=overwrite, screen=screen)
    _warn_of_unknown(factors, screen)
    screen.out.print(f"Changed {len(factors.shapes)} tensors; model in {model}.", highlight=False)


@app.command()
def export(
    out: Out,
    lora: Annotated[
        Path, typer.Option("--lora", help="PEFT LoRA folder to write.", show_default=False)
    ],
    lora_rank: LoraRank = VLLM_RANKS[-1],
    rank_pattern: RankPattern = False,
    dtype: Annotated[
        str | None,
        typer.Option(help=f"Of the LoRA, as the factors by default: {', '.join(DTYPES)}."),
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write the factors as a LoRA adapter that PEFT and vLLM load."""
    screen = Screen(quiet, as_json)
    factors = load_factors(out)
    options = _job.LoraOptions(lora_rank, rank_pattern, parse_dtype(dtype) or factors.dtype)
    report = _job.export(out, lora, options, overwrite=overwrite)
    _warn_of_unknown(factors, screen)
    _print_lines(_report.lora_lines(report, str(lora)), screen)
    _print_json(report, as_json)


@app.command()
def info(out: Out, quiet: Quiet = False, as_json: Json = False) -> None:
    """Show what a factors file holds."""
    screen = Screen(quiet, as_json)
    report = _report.factors_report(load_factors(out))
    _show_factors(report, screen)
    _print_json(report, as_json)


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="One row, whole.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """List the adapter methods that `tdecomp_torch.attach` knows by name."""
    rows = [method(name)] if name else list(CATALOGUE.values())
    report = {spec.name: spec.to_json() for spec in rows}
    if not as_json:
        screen = Screen(False, as_json)
        _print_lines(_report.method_lines(rows, whole=name is not None), screen)
    _print_json(report, as_json)


def _show_factors(report: dict[str, Any], screen: Screen) -> None:
    _print_lines(_report.unknown_lines(report["unknown"]), screen)
    screen.out.print(_report.factors_table(report))
    _print_lines(_report.summary_lines(report), screen)


def _warn_of_unknown(factors: Factors, screen: Screen) -> None:
    for line in _report.unknown_lines(_report.factors_report(factors)["unknown"]):
        screen.note(line)


def _print_lines(lines: list[str], screen: Screen) -> None:
    for line in lines:
        screen.out.print(line, highlight=False, soft_wrap=True)


def _print_json(report: dict[str, Any], wanted: bool) -> None:
    if wanted:
        print(json.dumps(_finite(report), indent=2, allow_nan=False))


def _finite(value: Any) -> Any:
    """The same JSON value with null for what is not a number: NaN and Infinity are not JSON."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
