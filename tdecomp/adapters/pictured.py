"""What a picture shows of an adapter: its terms, and below them scale, sizes and base rule."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from tdecomp.adapters.terms import Factor, Term
from tdecomp.drawing import DrawnProduct, DrawnTensor
from tdecomp.modes import Axis, flatten

__all__ = ["pictured"]


def pictured(
    terms: Sequence[Term],
    factors: Iterable[Factor],
    output: Sequence[Axis],
    *,
    sites: Collection[str],
    sizes: Mapping[str, int] | None = None,
    wrap: Iterable[tuple[str, tuple[str, ...], str]] = (),
) -> tuple[DrawnProduct, ...]:
    """The terms of an adapter, and the vectors of its norm wrap (`Wrap.factors`) beside them."""
    frozen = {factor.name for factor in factors if not factor.trainable}
    open_names = flatten(output)
    written = {name: str(n) for name, n in (sizes or {}).items()}
    shown = frozenset({*sites} - {*open_names})

    def product(nodes: Iterable[DrawnTensor], sign: str) -> DrawnProduct:
        return DrawnProduct(
            nodes=tuple(nodes), output=open_names, sizes=written, sites=shown, sign=sign
        )

    found = [
        product(
            (DrawnTensor(o.factor, o.letters, o.factor in frozen) for o in term.operands),
            "−" if term.sign < 0 else "+" if k else "",
        )
        for k, term in enumerate(terms)
    ]
    norms = (product([DrawnTensor(name, modes)], "norm") for name, modes, _ in wrap)
    return (*found, *norms)
