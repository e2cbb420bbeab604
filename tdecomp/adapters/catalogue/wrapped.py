"""Methods that normalise the adapted weight: DoRA and its relatives."""

from __future__ import annotations

from tdecomp.adapters.spec import Spec

__all__ = ["WRAPPED"]

_LORA = "b: site out r, a: site r in"
_START = {"b": "zeros", "a": "uniform(1/sqrt(in))"}  # Kaiming-uniform with a = sqrt(5)

WRAPPED: tuple[Spec, ...] = (
    Spec.parse(
        "dora",
        _LORA,
        _START,
        scale="alpha / r",
        alpha="2 * r",
        wrap="rows",
        source="arXiv:2402.09353, equation 5",
    ),
    # a core between singular vectors; the singular values go with those of the inputs
    Spec.parse(
        "edora",
        "*u: site out r, core: site r s, *vh: site s in",
        {"u": "svd_u(0)", "core": "normal(0.00001)", "vh": "svd_vh(1)"},
        where={"s": "r"},
        scale="alpha / r",
        alpha="16",
        wrap="rows",
        source="arXiv:2501.12067",
    ),
    # both norms constant to the gradient, as DoRA's; there is no public code of the authors
    Spec.parse(
        "bora",
        _LORA,
        _START,
        scale="alpha / r",
        alpha="r",
        wrap="rows and columns",
        source="arXiv:2412.06441",
    ),
    # no scale: the norm of the update takes it out, and once it moves it has the norm beta, which
    # starts as 1 here (the paper's start is not known here)
    Spec.parse("map", _LORA, _START, wrap="whole", source="arXiv:2505.23094"),
)
