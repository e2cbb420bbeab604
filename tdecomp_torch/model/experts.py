"""Matrices that lie in one parameter along a leading axis, as transformers keeps its experts.

Their module gathers tokens, multiplies and adds up in a forward of its own, so that no output is
there to be added to. What is adapted is the parameter itself, for the time of every call.
"""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor, nn

from tdecomp.errors import SiteError
from tdecomp.stack import Site
from tdecomp_torch.model.kinds import Kind, direction
from tdecomp_torch.model.offload import offloaded

__all__ = ["FusedExperts", "expert_parameters"]


class FusedExperts(Kind):
    """A parameter ``(expert, out, in)``, or turned ``(expert, in, out)``.

    As a matrix it is all experts one below the other, ``(expert out, in)``.
    """

    by_weight = True

    def __init__(self, name: str, *, turned: bool):
        super().__init__()
        self.name, self.turned = name, turned

    # -- its weight --------------------------------------------------------------------------

    def shape(self, module: nn.Module) -> tuple[int, int]:
        """(experts times out, in)."""
        n, *inside = self.stored(module).shape
        out, in_ = reversed(inside) if self.turned else inside
        return n * out, in_

    def stored(self, module: nn.Module) -> Tensor:
        """The parameter."""
        own = module._parameters[self.name]  # also while an adapted one stands in for it
        assert own is not None
        return own

    def content(self, module: nn.Module) -> list[Tensor]:
        """The parameter alone."""
        return [self.stored(module)]

    def probe(self, module: nn.Module) -> Tensor:
        """All experts times a fixed vector."""
        w = self.matrix(module)
        return w @ direction(w.shape[1]).to(w)

    def as_matrix(self, stored: Tensor) -> Tensor:
        """All experts one below the other, ``(expert out, in)``."""
        return (stored.mT if self.turned else stored).flatten(0, 1)  # (expert out, in)

    def laid(self, matrix: Tensor, like: Tensor) -> Tensor:
        """Such a matrix as experts; a view."""
        own = matrix.reshape(like.shape[0], -1, matrix.shape[1])  # (expert, out, in)
        return own.mT if self.turned else own

    def first_row(self, site: Site, module: nn.Module) -> int:
        """Row of that matrix that a site starts at."""
        (number,) = site.positions
        return number * (self.shape(module)[0] // self.stored(module).shape[0]) + site.first_row

    def bias(self, module: nn.Module) -> None:
        """None: the module's own forward adds it."""
        del module

    # -- its input and output: its module alone knows them ------------------------------------

    def tokens(self, module: nn.Module, x: Tensor) -> NoReturn:
        """Refused."""
        del x
        raise self._unseen(module)

    def rows(self, module: nn.Module, output: Tensor) -> NoReturn:
        """Refused."""
        del output
        raise self._unseen(module)

    def restored(self, module: nn.Module, rows: Tensor, output: Tensor) -> NoReturn:
        """Refused."""
        del rows, output
        raise self._unseen(module)

    def plain(self) -> None:
        """None: no class is known by its forward."""

    def probes(self, module: nn.Module, dtype: torch.dtype) -> NoReturn:
        """Refused."""
        del dtype
        raise self._unseen(module)

    def _unseen(self, module: nn.Module) -> SiteError:
        return SiteError(
            f"{self.name} of a {type(module).__name__} is used inside of its forward, where no"
            " tokens are seen: leave it out with exclude="
        )


def expert_parameters(module: nn.Module) -> list[FusedExperts]:
    """The parameters of a module that are several matrices of floating numbers."""
    if type(module).__module__.startswith("torch."):  # convolutions
        return []
    turned = getattr(module, "is_transposed", None) is True  # as transformers says of its experts
    return [
        FusedExperts(name, turned=turned)
        for name, own in module.named_parameters(recurse=False)
        if own.dim() == 3 and own.shape[0] > 1 and own.numel()
        if own.is_floating_point() and own.element_size() > 1
        if offloaded(module, name) is None
    ]
