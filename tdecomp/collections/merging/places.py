"""Where a merge rule works: in the factors, on cores in common bases, or on dense deltas."""

from __future__ import annotations

import numpy as np

from tdecomp.collections.merging.informed import RegressionMean
from tdecomp.collections.merging.rule import Combination, StackRule
from tdecomp.collections.merging.site import Merged, MergeSite
from tdecomp.collections.merging.spectral import TuckerOverTasks

__all__ = ["by_inputs", "dense", "in_aligned_space", "in_factors", "lost_in_bases", "on_cores"]


def in_factors(rule: Combination, site: MergeSite) -> Merged:
    """The members' factors side by side, ``(out, Σ r)`` and ``(Σ r, in)``; nothing is lost."""
    found = rule.coefficients(site.cores.gram(), np.asarray(site.weights))
    b = np.concatenate([c * b for c, (b, _) in zip(rule.scale * found, site.pairs, strict=True)], 1)
    return Merged(b, np.concatenate([a for _, a in site.pairs]))


def by_inputs(rule: RegressionMean, site: MergeSite) -> Merged:
    """In the factors, too, with all ``A_t`` multiplied by moments of inputs."""
    b, a = rule.product(site)
    return Merged(rule.scale * b, a)


def on_cores(rule: StackRule, site: MergeSite) -> Merged:
    """The rule on small cores, ``left · core · right``; the cost is linear in out + in."""
    core = rule.scale * rule.merged(site.cores.stack, site)
    return Merged(site.cores.left @ core, site.cores.right)


def in_aligned_space(rule: StackRule, site: MergeSite) -> Merged:
    """The rule on right factors of the deltas side by side: ``U S · rule(V_1, …, V_T)``.

    ``[ΔW_1, …, ΔW_T] = U S [V_1, …, V_T]``, every V_t ``(k, in)`` in coordinates of the inputs.

    Notes
    -----
    [stoica2025], section 4; the SVD is one of the cores side by side.
    """
    left, right, stack = site.cores.left, site.cores.right, site.cores.stack
    count, p, q = stack.shape
    u, s, vh = np.linalg.svd(stack.transpose(1, 0, 2).reshape(p, count * q), full_matrices=False)
    aligned = vh.reshape(len(s), count, q).transpose(1, 0, 2) @ right  # (task, k, in)
    return Merged(rule.scale * (left @ u) * s, rule.merged(aligned, site))


def dense(rule: StackRule, site: MergeSite) -> Merged:
    """The rule on the deltas, written out for this site alone."""
    return Merged(rule.scale * rule.merged(site.dense(), site))


def lost_in_bases(rule: TuckerOverTasks, site: MergeSite) -> tuple[float, ...]:
    """``‖kept − ΔW_t‖²`` of every member, exact: the bases of the cores are orthonormal."""
    return rule.losses(site.cores.stack)
