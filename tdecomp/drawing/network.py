"""What a picture shows: tensors and the names of their axes, as plain text, no arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tdecomp.modes import Equation, flatten

__all__ = ["Diagram", "DrawnTensor", "Panel", "DrawnProduct", "numbered"]


@dataclass(frozen=True)
class DrawnTensor:
    """A tensor: its name and the names of its axes; a frozen one is drawn as such."""

    name: str
    modes: tuple[str, ...]
    frozen: bool = False


@dataclass(frozen=True, kw_only=True)
class DrawnProduct:
    """Tensors that are multiplied and summed over every name that is not in the output.

    Attributes
    ----------
    nodes
        The tensors.
    output
        Names that stay open.
    sizes
        What is written beside a name: a number, or nothing where it is not known.
    sites
        Names that say which weight: every tensor that carries one has a part for each.
    sign
        Written before the product: ``+``, ``−`` or a word; empty for the first.
    """

    nodes: tuple[DrawnTensor, ...]
    output: tuple[str, ...]
    sizes: Mapping[str, str] = field(default_factory=dict)
    sites: frozenset[str] = frozenset()
    sign: str = ""

    @property
    def terms(self) -> str:
        """The axes of the tensors: ``out r, layer r s, s in``."""
        return ", ".join(" ".join(node.modes) for node in self.nodes)

    def label(self, name: str) -> str:
        """A name and its size: ``layer 12``."""
        return f"{name} {self.sizes.get(name, '')}".rstrip()


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One network, or a sum of some, under a title and above its notes."""

    title: str
    products: tuple[DrawnProduct, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Diagram:
    """All panels of a picture, from top to bottom."""

    panels: tuple[Panel, ...]

    @property
    def n_tensors(self) -> int:
        """How many tensors are drawn."""
        return sum(len(product.nodes) for panel in self.panels for product in panel.products)


def numbered(
    equation: Equation,
    sizes: Mapping[str, int],
    names: Sequence[str] = (),
    sites: frozenset[str] = frozenset(),
) -> DrawnProduct:
    """The product that an equation says; without `names` its tensors are 0, 1, 2, ..."""
    terms = equation.terms
    found = tuple(names) or tuple(map(str, range(len(terms))))
    return DrawnProduct(
        nodes=tuple(DrawnTensor(n, flatten(term)) for n, term in zip(found, terms, strict=True)),
        output=flatten(equation.output),
        sizes={name: str(n) for name, n in sizes.items()},
        sites=sites,
    )
