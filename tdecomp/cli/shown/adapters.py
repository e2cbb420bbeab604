"""The catalogue of adapters."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from tdecomp.adapters import Spec

__all__ = ["adapter_lines", "adapters_table"]


def adapters_table(specs: Sequence[Spec]) -> Table:
    """A row each: name, equation, source."""
    table = Table(box=None, pad_edge=False)
    for name in ("name", "equation", "source"):
        table.add_column(name, no_wrap=name != "equation")
    for spec in specs:
        table.add_row(spec.name, str(spec).partition(": ")[2], spec.source)
    return table


def adapter_lines(spec: Spec) -> list[str]:
    """Everything that a row says."""
    lines = [str(spec), *(f"  {f.name} starts as {f.init}" for f in spec.factors)]
    lines += [f"  {f.name} is frozen to a share of {f.freeze}" for f in spec.factors if f.freeze]
    lines += [
        f"  {f.name} has at most {f.clusters} different values" for f in spec.factors if f.clusters
    ]
    lines += [f"  {f.name} has norm 1 along {' '.join(f.unit)}" for f in spec.factors if f.unit]
    lines += [f"  {name} = {text}" for name, text in spec.where]
    lines += [f"  scale {spec.scale}, alpha {spec.alpha}", f"  {spec.base_rule.says}"]
    lines += [f"  norm of {spec.wrap}"] if spec.wrap else []
    lines += [f"  {spec.source}"] if spec.source else []
    return lines
