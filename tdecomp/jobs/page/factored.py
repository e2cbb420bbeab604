"""The part of a page on factors: errors, energy and ranks by place, spectra, what is left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tdecomp.drawing import Curve, draw_chart, write_svg
from tdecomp.files.factors import Factors, GroupFactors
from tdecomp.formats.site_spectra import site_spectra
from tdecomp.jobs.commands import remaking_command, verify_command
from tdecomp.jobs.decomposing import NotCovered
from tdecomp.jobs.page.html import code, folded, heading, heat_table, paragraph, plain_table
from tdecomp.jobs.page.shared import unknown_part
from tdecomp.jobs.reports import relative_error, unknown_of, without_numbers
from tdecomp.stack import Site

__all__ = ["ToldBeside", "factored_part"]

_ROUNDED = 1e-6  # relative to the largest: smaller singular values are float32's rounding
_OPENED = 2  # groups whose spectra are shown at once
_ROWS = 40  # of the table of what is not covered


@dataclass(frozen=True, kw_only=True)
class ToldBeside:
    """What ``report.json`` tells beside the factors; None: it does not."""

    family: str = ""
    notes: tuple[str, ...] = ()
    uncovered: tuple[NotCovered, ...] | None = None
    uncovered_share: float | None = None
    rounding_floor: float | None = None
    healing: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class SiteFigures:
    """One matrix: where it stands, its energy and residual, and the singular values kept."""

    row: int | str
    column: str
    energy: float
    residual: float
    values: np.ndarray

    @property
    def rank(self) -> int:
        """How many singular values are more than rounding."""
        return int(np.sum(self.values > _ROUNDED * max(self.values, default=0.0)))


def factored_part(factors: Factors, told: ToldBeside, title: str, path: str) -> str:
    """Figures of factors: in all, for every layer and projection, and for every group."""
    towers = len({site.prefix for part in factors.parts for site in part.group.sites}) > 1
    figures = [_figures(part, towers) for part in factors.parts]
    everything = [figure for group in figures for figure in group]
    parts = [
        heading(title),
        paragraph(_summary(factors, told)),
        paragraph(_floor(told)),
        unknown_part(unknown_of(factors.unknown)),
        *_heat_maps(everything),
        heading("Groups", 3),
        _groups_table(factors, figures),
        *(
            _group_part(part, group, opened=k < _OPENED)
            for k, (part, group) in enumerate(zip(factors.parts, figures, strict=True))
        ),
        heading("Not covered", 3),
        *_not_covered(told),
        heading("How to make it again", 3),
        code(_commands(factors, told, path)),
        *(paragraph(f"Note: {note}") for note in told.notes),
    ]
    return "".join(parts)


def _figures(part: GroupFactors, towers: bool) -> list[SiteFigures]:
    rows = zip(part.group.sites, part.energy, part.residual, site_spectra(part.tensor), strict=True)
    return [
        SiteFigures(
            row=dict(site.labels).get("layer", "all"),
            column=_column(site, towers),
            energy=float(energy),
            residual=float(residual),
            values=values,
        )
        for site, energy, residual, values in rows
    ]


def _column(site: Site, towers: bool) -> str:
    """Tower, where there are several, and projection; without such a label the end of the path."""
    labels = dict(site.labels)
    words = [str(labels[mode]) for mode in ("stack", "attn", "proj") if mode in labels]
    if "head" in labels:  # "q_proj.3"
        words.append(str(labels["head"]).rpartition(".")[0])
    words = words or [site.path.rpartition(".")[2]]
    return " ".join([site.prefix, *words] if towers else words).strip()


def _summary(factors: Factors, told: ToldBeside) -> str:
    energy = sum(float(part.energy.sum()) for part in factors.parts)
    error = relative_error((part.residual.sum() for part in factors.parts), [energy])
    healed = "; they were healed afterwards" if told.healing is not None else ""
    return (
        f"{factors.n_params:,} numbers ({factors.nbytes:,} bytes, {factors.dtype}) of method "
        f"{factors.method} stand for {factors.delta_params:,} of the delta, "
        f"{factors.n_params / max(factors.delta_params, 1):.2%}{healed}. Relative error over all "
        f"that is covered: {error:.4f}."
    )


def _floor(told: ToldBeside) -> str:
    if told.rounding_floor is None:
        return "The rounding floor is not known here: report.json does not tell it."
    if not told.rounding_floor:
        return "The rounding floor is 0: both models are stored in full precision."
    return (
        f"Rounding floor: about {told.rounding_floor:.4f} of the delta is the rounding of "
        "half-precision storage. An error below it stores noise."
    )


# ------------------------------------------------------------------------------------- heat maps


def _heat_maps(figures: Sequence[SiteFigures]) -> list[str]:
    """Energy, error and rank, a row for each layer and a column for each projection."""
    cells: dict[tuple[int | str, str], list[SiteFigures]] = {}
    for figure in figures:
        cells.setdefault((figure.row, figure.column), []).append(figure)
    many = max(map(len, cells.values()), default=1)
    of = f" (of {many} matrices where there are more in a place)" if many > 1 else ""
    total = sum(figure.energy for figure in figures) or 1.0
    energy = {at: sum(f.energy for f in here) / total for at, here in cells.items()}
    error = {
        at: relative_error((f.residual for f in here), (f.energy for f in here))
        for at, here in cells.items()
    }
    rank = {at: float(np.mean([f.rank for f in here])) for at, here in cells.items()}
    return [
        heading(f"Energy: share of ‖Δ‖²{of}", 3),
        _heat_map(energy, lambda x: f"{x:.1%}"),
        heading(f"Relative error{of}", 3),
        _heat_map(error, lambda x: f"{x:.2f}"),
        heading(f"Rank kept{', the mean' if many > 1 else ''}{of}", 3),
        _heat_map(rank, lambda x: f"{x:.3g}"),
    ]


def _heat_map(cells: Mapping[tuple[int | str, str], float], write: Callable[[float], str]) -> str:
    rows = sorted({row for row, _ in cells}, key=lambda row: (isinstance(row, str), row))
    columns = list(dict.fromkeys(column for _, column in cells))
    hottest = max(cells.values(), default=0.0) or 1.0

    def cell(at: tuple[int | str, str]) -> tuple[str, float] | None:
        return (write(cells[at]), cells[at] / hottest) if at in cells else None

    return heat_table(
        "layer", columns, [(str(row), [cell((row, name)) for name in columns]) for row in rows]
    )


# ----------------------------------------------------------------------------------------- groups


def _groups_table(factors: Factors, figures: Sequence[Sequence[SiteFigures]]) -> str:
    total = sum(f.energy for group in figures for f in group) or 1.0
    rows: list[list[str]] = []
    for part, group in zip(factors.parts, figures, strict=True):
        energy = sum(f.energy for f in group)
        ranks = [f.rank for f in group]
        least, most = min(ranks), max(ranks)
        rows.append(
            [
                part.group.name,
                type(part.tensor).__name__,
                " × ".join(map(str, part.group.shape)),
                str(most) if least == most else f"{least} to {most}",
                f"{part.tensor.n_params:,}",
                f"{energy / total:.1%}",
                f"{relative_error((f.residual for f in group), [energy]):.4f}",
            ]
        )
    headings = ["group", "format", "sizes", "rank", "numbers", "of ‖Δ‖²", "error"]
    return plain_table(headings, rows, names=3)


def _group_part(part: GroupFactors, figures: Sequence[SiteFigures], *, opened: bool) -> str:
    """Spectra and picture of one group."""
    chart = _spectra([f.values for f in figures], part.group.name)
    name = f"{part.group.name}: spectra and network"
    return folded(name, chart + write_svg(part.tensor.diagram()), opened=opened)


def _spectra(values: Sequence[np.ndarray], name: str) -> str:
    """Largest, median and least singular value by number, over the matrices that have one."""
    longest = max(map(len, values), default=0)
    if not longest:
        return paragraph("No singular value is kept.")
    kept = [[s[k] for s in values if len(s) > k] for k in range(longest)]
    names: dict[str, float] = {"largest": 1.0, "median": 0.5, "least": 0.0}
    curves = [
        Curve(name, tuple((k + 1.0, float(np.quantile(s, at))) for k, s in enumerate(kept)))
        for name, at in names.items()
        if len(values) > 1 or name == "median"
    ]
    return draw_chart(
        curves,
        title=f"Singular values kept of the {len(values)} matrices of {name}",
        across="number",
        up=f"singular value, over {len(values)} matrices",
        log_up=True,
    )


# -------------------------------------------------------------------------- what is not in them


def _not_covered(told: ToldBeside) -> Iterable[str]:
    if told.uncovered is None:
        yield paragraph("Not known here: report.json does not tell it.")
        return
    if told.uncovered_share is None:
        yield paragraph("Its share of ‖Δ‖² is unknown: not everything could be compared.")
    else:
        yield paragraph(f"{told.uncovered_share:.2%} of ‖Δ‖² is not in the factors.")
    alike: dict[tuple[str, str], list[float | None]] = {}
    for row in told.uncovered:
        kind = without_numbers(row.tensor), row.reason
        alike.setdefault(kind, []).append(row.energy_share)
    ordered = sorted(alike.items(), key=lambda item: -_sum(item[1]))
    rows = [(name, why, str(len(shares)), _share(_sum(shares))) for (name, why), shares in ordered]
    if rows:
        yield plain_table(["tensors", "reason", "count", "of ‖Δ‖²"], rows[:_ROWS], names=2)
    if len(rows) > _ROWS:
        yield paragraph(f"{len(rows) - _ROWS} rows more are in report.json.")


def _sum(shares: Iterable[float | None]) -> float:
    """Infinite where one of them is unknown."""
    return sum(math.inf if share is None else share for share in shares)


def _share(size: float) -> str:
    return "unknown" if math.isinf(size) else f"{size:.2%}"


def _commands(factors: Factors, told: ToldBeside, path: str) -> list[str]:
    base, tuned = (
        str(factors.sources.get(k, {}).get("path", k.upper())) for k in ("base", "tuned")
    )
    remade = remaking_command(factors)
    lines = [remade] if remade else [f"# how {path} was made is not known"]
    if told.healing is not None:
        lines.append(f"# and then: tdecomp heal, see 'healing' in report.json of {path}")
    return [*lines, verify_command(path, base, tuned)]
