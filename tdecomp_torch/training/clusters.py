"""Factors of several labels that become one during training: the closest first."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["RunningMean", "join_closest"]


class RunningMean:
    """Mean of a factor over the steps so far; it is not saved, and starts anew after loading."""

    def __init__(self):
        self.n, self.value = 0, None

    @torch.no_grad()
    def add(self, factor: Tensor) -> None:
        """Count one more step."""
        self.n += 1
        if self.value is None:
            self.value = factor.detach().clone()
        else:
            self.value.lerp_(factor.detach(), 1 / self.n)

    def laid(self, lead: Sequence[int]) -> Tensor | None:
        """The mean with some axes in front and all others joined; None before the first step."""
        if self.value is None:
            return None
        rest = [k for k in range(self.value.dim()) if k not in lead]
        return self.value.permute([*lead, *rest]).flatten(len(lead))


@torch.no_grad()
def join_closest(assign: Tensor, features: Tensor, wanted: int) -> None:
    """Give the rows of one label to another until only `wanted` labels are in use.

    Of the two labels that are closest the first passes its rows on to the second; no factor
    changes (arXiv:2412.10135, algorithm 1: distances are Euclidean).

    Parameters
    ----------
    assign
        ``(row, label)``, one 1 in every row; changed in place.
    features
        ``(label, n)``.
    wanted
        1 or more.
    """
    used = assign.any(0).nonzero()[:, 0].tolist()
    while len(used) > wanted:
        gaps = torch.cdist(
            features[used], features[used], compute_mode="donot_use_mm_for_euclid_dist"
        )
        gaps[tuple(torch.tril_indices(len(used), len(used)))] = torch.inf
        first, second = divmod(int(gaps.argmin()), len(used))
        assign[:, used[second]] += assign[:, used[first]]
        assign[:, used[first]] = 0
        del used[first]
