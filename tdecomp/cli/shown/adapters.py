"""The catalogue of adapters."""

from __future__ import annotations

from collections.abc import Sequence

from tdecomp.adapters import Spec

__all__ = ["adapter_lines"]


def adapter_lines(specs: Sequence[Spec], *, whole: bool) -> list[str]:
    """Adapter methods, one per line; or everything that a row says."""
    if not whole:
        return [str(spec) for spec in specs]
    return [line for spec in specs for line in _whole(spec)]


def _whole(spec: Spec) -> list[str]:
    lines = [str(spec), *(f"  {f.name} starts as {f.init}" for f in spec.factors)]
    lines += [f"  {f.name} is frozen to a share of {f.freeze}" for f in spec.factors if f.freeze]
    lines += [
        f"  {f.name} tells apart no more than {f.clusters}" for f in spec.factors if f.clusters
    ]
    lines += [f"  {name} = {text}" for name, text in spec.where]
    lines += [f"  scale {spec.scale}, alpha {spec.alpha}", f"  {spec.base_rule.says}"]
    lines += [f"  norm of {spec.wrap}"] if spec.wrap else []
    lines += [f"  {spec.source}"] if spec.source else []
    return lines
