"""Reports: what a command found, as plain JSON, and the tables a person reads."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from tdecomp.adapters import LoRAModule, Spec
from tdecomp.adapters.spec import BASES
from tdecomp.cli._screen import short
from tdecomp.decomposition import relative
from tdecomp.files.checkpoint import Checkpoint
from tdecomp.files.delta import Uncovered
from tdecomp.files.factors import Factors
from tdecomp.files.peft_lora import vllm_rank
from tdecomp.formats import Format
from tdecomp.stack import Group, Survey

__all__ = [
    "factors_report",
    "factors_table",
    "fit_report",
    "inspect_report",
    "inspect_table",
    "lora_lines",
    "method_lines",
    "lora_report",
    "summary_lines",
    "uncovered_table",
    "unknown_lines",
    "verify_report",
    "verify_table",
]

AGREES = 1e-3
"""Relative difference between a claimed and a measured error that `verify` accepts."""

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")  # a layer or expert inside a name
_FLOOR = 1e-6  # errors below this are rounding of float32, compared absolutely


def inspect_report(
    checkpoint: Checkpoint, survey: Survey, groups: Sequence[Group]
) -> dict[str, Any]:
    """What `inspect` says of a model."""
    return {
        "model": str(checkpoint.path),
        "family": survey.family,
        "model_type": checkpoint.config.get("model_type"),
        "tensors": len(checkpoint.names),
        "numbers": sum(math.prod(checkpoint.shape(n)) for n in checkpoint.names),
        "covered_numbers": sum(math.prod(g.shape) for g in groups),
        "groups": [
            {
                "name": g.name,
                "modes": list(g.modes),
                "shape": list(g.shape),
                "labels": [list(labels) for labels in g.labels],
                "grid": g.grid,
                "dtypes": sorted({checkpoint.dtype(s.tensor) for s in g.sites}),
                "sites": [s.path for s in g.sites],
            }
            for g in groups
        ],
        "uncovered": [{"tensor": name, "reason": reason} for name, reason in survey.uncovered],
        "notes": list(survey.notes),
    }


def factors_report(factors: Factors) -> dict[str, Any]:
    """What a factors file holds: total, per group and per site."""
    total = sum(float(e.sum()) for e in factors.energy)
    residual = sum(float(r.sum()) for r in factors.residual)
    return {
        "unknown": _unknown_rows(factors.unknown),
        "method": factors.method,
        "dtype": factors.dtype,
        "options": dict(factors.options),
        "n_params": factors.n_params,
        "delta_params": factors.delta_params,
        "bytes": factors.nbytes,
        "error": relative(residual, total),
        "groups": [
            {
                "name": group.name,
                "modes": list(group.modes),
                "shape": list(group.shape),
                "grid": group.grid,
                "format": type(tensor).__name__,
                "equation": str(tensor.equation),
                "rank": list(tensor.rank),
                "n_params": tensor.n_params,
                "error": relative(float(r.sum()), float(e.sum())),
                "energy_share": float(e.sum()) / total if total else 0.0,
                "sites": _site_rows(group, r, e),
            }
            for group, tensor, r, e in _rows(factors)
        ],
        "sources": dict(factors.sources),
    }


def fit_report(
    factors: Factors, survey: Survey, uncovered: Sequence[Uncovered], rounding: float
) -> dict[str, Any]:
    """What `decompose` found: the factors, what they leave out, and the rounding floor."""
    covered = sum(float(e.sum()) for e in factors.energy)
    left_out = sum(u.energy for u in uncovered if u.energy is not None)
    measured = covered + left_out
    share = left_out / measured if measured else 0.0
    return factors_report(factors) | {
        "family": survey.family,
        "notes": list(survey.notes),
        "zero_delta": measured == 0 and not factors.unknown,
        "uncovered_share": None if factors.unknown else share,
        "uncovered_share_of_measured": share,
        "uncovered": [
            {
                "tensor": u.tensor,
                "reason": u.reason,
                "energy_share": _share(u.energy, measured),
            }
            for u in uncovered
        ],
        "rounding_floor": relative(rounding, covered),
    }


def _share(energy: float | None, measured: float) -> float | None:
    if energy is None:
        return None
    return energy / measured if measured else 0.0


def _unknown_rows(rows: Iterable[tuple[str, str, bool]]) -> list[dict[str, Any]]:
    return [{"tensor": tensor, "reason": why, "site": site} for tensor, why, site in rows]


def unknown_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What nobody knows, in a sentence; nothing where everything is known."""
    if not rows:
        return []
    sites, first = sum(row["site"] for row in rows), rows[0]
    kind = "targeted tensor" if sites == len(rows) else "tensor"
    many = f"{len(rows)} {kind}{'s' if len(rows) > 1 else ''}"
    among = f", {sites} of them targeted," if 0 < sites < len(rows) else ""
    return [
        f"Unknown: what changed in {many}{among} is in no figure here, "
        f"e.g. {first['tensor']} ({first['reason']})."
    ]


def verify_report(
    factors: Factors,
    residuals: Sequence[np.ndarray],
    energies: Sequence[np.ndarray],
    changed: Sequence[str],
) -> dict[str, Any]:
    """Claimed and measured errors side by side."""
    sites = []
    for (group, _, r, e), r_now, e_now in zip(_rows(factors), residuals, energies, strict=True):
        for i, site in enumerate(group.sites):
            claimed, measured = relative(r[i], e[i]), relative(r_now[i], e_now[i])
            agrees = _agree(claimed, measured)
            sites.append(
                {"site": site.path, "claimed": claimed, "measured": measured, "agrees": agrees}
            )
    claimed = factors_report(factors)["error"]
    measured = relative(
        sum(float(r.sum()) for r in residuals), sum(float(e.sum()) for e in energies)
    )
    return {
        "unknown": _unknown_rows(factors.unknown),
        "claimed": claimed,
        "measured": measured,
        "agrees": _agree(claimed, measured) and all(row["agrees"] for row in sites),
        "changed_files": list(changed),
        "sites": sites,
    }


def lora_report(
    modules: Sequence[LoRAModule], left_out: Sequence[str], rank: int, max_rank: int
) -> dict[str, Any]:
    """What a LoRA folder holds and how far it is from the factors."""
    departure, energy = sum(m.departure for m in modules), sum(m.energy for m in modules)
    return {
        "rank": rank,
        "max_rank": max_rank,
        "modules": sum(m.rank > 0 for m in modules),
        "exact": departure <= _FLOOR**2 * energy,
        "departure": relative(departure, energy),
        "truncated": [
            m.module for m in modules if m.needed > m.rank and m.departure > _FLOOR**2 * m.energy
        ],
        "left_out": list(left_out),
        "vllm_max_lora_rank": vllm_rank(rank),
    }


def inspect_table(report: dict[str, Any]) -> Table:
    """Groups of a model."""
    table = _table(_family_line(report), "group", "modes", "labels", "grid", "dtype")
    for g in report["groups"]:
        modes = " × ".join(f"{n} {m}" for n, m in zip(g["shape"], g["modes"], strict=True))
        labels = "; ".join(_labels(values) for values in g["labels"])
        table.add_row(g["name"], modes, labels, g["grid"], " ".join(g["dtypes"]))
    return table


def uncovered_table(rows: Sequence[dict[str, Any]], title: str, limit: int | None = None) -> Table:
    """Tensors that are left out; names that differ in numbers only are one row."""
    shares = any("energy_share" in row for row in rows)
    known = all(row.get("energy_share", 0.0) is not None for row in rows)
    of = "share of ‖Δ‖²" if known else "share of what is known of ‖Δ‖²"
    table = _table(title, "tensors", "reason", right=["count", *[of] * shares])
    alike: dict[tuple[str, str], list[float | None]] = {}
    for row in rows:
        name = _NUMBER.sub("*", row["tensor"])
        alike.setdefault((name, row["reason"]), []).append(row.get("energy_share", 0.0))
    ordered = sorted(alike.items(), key=lambda item: _rank_of_shares(item[1]))
    for (name, reason), found in ordered[:limit]:
        table.add_row(name, reason, str(len(found)), *[_sum_of_shares(found)] * shares)
    if rest := [share for _, found in ordered[len(table.rows) :] for share in found]:
        cells = [_sum_of_shares(rest)] * shares
        table.add_row("all others", "(each with --json)", str(len(rest)), *cells)
    return table


def _rank_of_shares(shares: Sequence[float | None]) -> float:
    """Unknown shares first, then the largest."""
    return -math.inf if None in shares else -sum(share or 0.0 for share in shares)


def _sum_of_shares(shares: Sequence[float | None]) -> str:
    return "unknown" if None in shares else f"{sum(share or 0.0 for share in shares):.2%}"


def factors_table(report: dict[str, Any]) -> Table:
    """Groups of a decomposed delta."""
    numbers = ["numbers", "of ‖Δ‖²", "error"]
    title = f"{report['method']}, {report['dtype']}"
    table = _table(title, "group", "shape", "rank", right=numbers)
    for g in report["groups"]:
        shape = "×".join(map(str, g["shape"]))
        row = (g["name"], shape, _rank(g["format"], g["rank"]), f"{g['n_params']:,}")
        table.add_row(*row, f"{g['energy_share']:.1%}", f"{g['error']:.4f}")
    table.add_section()
    table.add_row("total", "", "", f"{report['n_params']:,}", "100.0%", f"{report['error']:.4f}")
    return table


def summary_lines(report: dict[str, Any]) -> list[str]:
    """The sentences under the table."""
    share = report["n_params"] / report["delta_params"]
    lines = [
        f"{report['n_params']:,} numbers ({short(report['bytes'])}B) for "
        f"{report['delta_params']:,}: "
        f"{share:.2%} of the full delta, relative error {report['error']:.4f}."
    ]
    if report.get("zero_delta"):
        lines.append("The two checkpoints are identical: the delta is zero.")
    if "uncovered_share_of_measured" in report:
        of = "what is known of ‖Δ‖²" if report["unknown"] else "‖Δ‖²"
        lines.append(f"Not covered: {report['uncovered_share_of_measured']:.2%} of {of}.")
    if report.get("rounding_floor"):
        lines.append(
            f"About {report['rounding_floor']:.4f} of the delta is the rounding of half-precision "
            "storage: an error below it fits noise."
        )
    return lines + [f"Note: {note}" for note in report.get("notes", ())]


def lora_lines(report: dict[str, Any], folder: str) -> list[str]:
    """What was written as LoRA."""
    exact = "exact" if report["names_known"] else "exact where PEFT finds the names"
    how = exact if report["exact"] else f"‖factors − LoRA‖/‖factors‖ = {report['departure']:.2g}"
    lines = [f"LoRA in {folder}: {report['modules']} modules, rank {report['rank']}, {how}."]
    if report["truncated"]:
        lines.append(
            f"{len(report['truncated'])} modules needed more than rank {report['max_rank']} and "
            f"were truncated by SVD, among them {report['truncated'][0]}."
        )
    if report["left_out"]:
        lines.append(
            f"Not in the LoRA (not the weight of a linear module): {', '.join(report['left_out'])}."
        )
    if report["refused"]:
        names = ", ".join(report["refused"])
        lines.append(f"Not in the LoRA, as PEFT does not adapt them in such models: {names}.")
    lines += report["notes"]
    if report["vllm_max_lora_rank"] is None:
        lines.append("vLLM takes ranks up to 512 only.")
    else:
        lines.append(f"For vLLM: --max-lora-rank {report['vllm_max_lora_rank']}.")
    return lines


def verify_table(report: dict[str, Any], limit: int = 12) -> Table:
    """Sites whose error differs most from what the file claims."""
    table = _table("relative error per site", "site", "claimed", "measured", "")
    worst = sorted(report["sites"], key=lambda row: -abs(row["claimed"] - row["measured"]))
    for row in worst[:limit]:
        verdict = _verdict(row["agrees"])
        table.add_row(row["site"], f"{row['claimed']:.6f}", f"{row['measured']:.6f}", verdict)
    table.add_section()
    verdict = _verdict(report["agrees"])
    table.add_row("total", f"{report['claimed']:.6f}", f"{report['measured']:.6f}", verdict)
    return table


def _verdict(agrees: bool) -> Text:
    return Text("agrees") if agrees else Text("differs", style="red")


def _table(title: str, *columns: str, right: Sequence[str] = ()) -> Table:
    """A table that breaks long names instead of cutting them; `right` are columns of numbers."""
    table = Table(title=title)
    for name in columns:
        table.add_column(name, overflow="fold")
    for name in right:
        table.add_column(name, justify="right")
    return table


def _agree(claimed: float, measured: float) -> bool:
    return abs(claimed - measured) <= AGREES * claimed + _FLOOR


def _rows(factors: Factors) -> zip[tuple[Group, Format, np.ndarray, np.ndarray]]:
    return zip(factors.groups, factors.tensors, factors.residual, factors.energy, strict=True)


def _site_rows(group: Group, residual: np.ndarray, energy: np.ndarray) -> list[dict[str, Any]]:
    return [
        {"site": site.path, "error": relative(float(r), float(e)), "energy": float(e)}
        for site, r, e in zip(group.sites, residual, energy, strict=True)
    ]


def _family_line(report: dict[str, Any]) -> str:
    share = report["covered_numbers"] / max(report["numbers"], 1)
    covered = f"{share:.1%} of {report['numbers']:,} numbers covered"
    return f"{report['model']}: family {report['family']}, {covered}"


def _labels(labels: Sequence[int | str]) -> str:
    if len(labels) > 2 and all(isinstance(n, int) for n in labels):
        first, last = labels[0], labels[-1]
        if all(int(b) - int(a) == 1 for a, b in pairwise(labels)):
            return f"{first}..{last}"
    shown = ", ".join(map(str, labels[:6]))
    return shown if len(labels) <= 6 else f"{shown}, ... ({len(labels)})"


def _rank(kind: str, rank: Sequence[int]) -> str:
    if kind == "LowRank" and len(rank) > 1:
        return f"{min(rank)}..{max(rank)} (mean {sum(rank) / len(rank):.1f})"
    return "×".join(map(str, rank))


def method_lines(specs: Sequence[Spec], *, whole: bool) -> list[str]:
    """Adapter methods, one per line; or everything that a row says."""
    if not whole:
        return [str(spec) for spec in specs]
    lines = []
    for spec in specs:
        lines += [str(spec), *(f"  {f.name} starts as {f.init}" for f in spec.factors)]
        lines += [
            f"  {f.name} is frozen to a share of {f.freeze}" for f in spec.factors if f.freeze
        ]
        lines += [
            f"  {f.name} tells apart no more than {f.clusters}" for f in spec.factors if f.clusters
        ]
        lines += [f"  {name} = {text}" for name, text in spec.where]
        lines += [f"  scale {spec.scale}, alpha {spec.alpha}", f"  {BASES[spec.base]}"]
        lines += [f"  norm of {spec.wrap}"] if spec.wrap else []
        lines += [f"  {spec.source}"] if spec.source else []
    return lines
