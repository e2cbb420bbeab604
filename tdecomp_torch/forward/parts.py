"""Which part of a factor a site uses, and the base weight as a factor."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tdecomp.adapters import Bound, Operand

__all__ = ["apart", "as_operand", "parts_of_sites", "places_of_operands", "sites_first"]

Index = tuple[int | slice, ...]


def places_of_operands(bound: Bound) -> list[list[list[Index]]]:
    """Per term, operand and site: where the part of the factor lies that the site uses."""
    sites = range(bound.grid.n_sites)
    places = lambda operand: [bound.where(operand, site) for site in sites]
    return [list(map(places, term.operands)) for term in bound.spec.terms]


def parts_of_sites(bound: Bound) -> list[list[tuple[str, Index]]]:
    """Per site: every factor by name, and where its part of it lies."""
    operands = [Operand(f.name, f.modes) for f in bound.factors]
    parts = lambda site: [(o.factor, bound.where(o, site)) for o in operands]
    return list(map(parts, range(bound.grid.n_sites)))


def apart(bound: Bound, operand: Operand, array: Tensor) -> Tensor | Sequence[Tensor]:
    """A factor as one tensor per site, cut along its site modes once; as it is if it has none."""
    array, modes = sites_first(bound, operand, array)
    if not modes:
        return array
    cells = array.reshape(-1, *array.shape[len(modes) :]).unbind(0)
    known = [mode for mode, _ in bound.grid.modes]
    found = []
    for site, place in enumerate(bound.grid.places):  # plain numbers, which torch.compile can read
        cell = 0
        for mode in modes:
            at = site if mode == "site" else place[known.index(mode)]
            cell = cell * bound.sizes[mode] + at
        found.append(cells[cell])
    return found


def sites_first(bound: Bound, operand: Operand, array: Tensor) -> tuple[Tensor, list[str]]:
    """The part of a factor that a term takes, its site modes in front, and their names."""
    sizes = tuple(bound.sizes[n] for n in operand.letters)
    if bound.shapes[operand.factor] != sizes:
        array = array[tuple(map(slice, sizes))]
    sited = [k for k, n in enumerate(operand.letters) if n in bound.grid.rows]
    rest = [k for k in range(len(sizes)) if k not in sited]
    order = [*sited, *rest]
    array = array if order == sorted(order) else array.permute(order)
    return array, [operand.letters[k] for k in sited]


def as_operand(bound: Bound, operand: Operand, weight: Tensor) -> Tensor:
    """A base weight ``(out, in)`` with the axes that an operand of it has."""
    w = weight.T if bound.turned else weight
    letters = (*bound.sides[0], *bound.sides[1])
    opened = w.reshape([bound.sizes[n] for n in letters])  # (*rows, *columns)
    modes = (n for n in bound.spec.factor(operand.factor).modes if n in letters)
    return opened.permute([letters.index(n) for n in modes])
