"""FFT versions of ``ΔW x``, for methods that set ``fast=`` (C3A, FourierFT)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tdecomp.adapters import Spec
from tdecomp_torch.tracing import is_traced

__all__ = ["FAST", "Fast", "fast_of"]

Parts = Mapping[str, Tensor]
"""Every factor of a method as one site sees it."""


def _circulant(tokens: Tensor, parts: Parts) -> Tensor:
    """``y[m, x] = Σ_n Σ_z kernel[m, n, z] · tokens[n, x + z]`` for every block, by FFT.

    tokens ``(token, in)``, kernel ``(m, n, b)``; gives ``(token, out)``, unscaled ([chen2024]).
    """
    kernel = parts["kernel"]
    m, n, b = kernel.shape
    if not is_traced() and not tokens.shape[0]:  # a transform of nothing is an error
        return tokens.new_zeros(0, m * b)
    spectrum = torch.fft.rfft(tokens.unflatten(1, (n, b)))  # (token, n, f)
    filters = torch.fft.rfft(kernel).conj()  # (m, n, f)
    with torch.autocast(tokens.device.type, enabled=False):  # it knows no complex numbers
        found = torch.einsum("tnf,mnf->tmf", spectrum, filters)
    return torch.fft.irfft(found, n=b).flatten(1)


def _fourier(tokens: Tensor, parts: Parts) -> Tensor:
    """``Re(Σ_k c_k e^{i(...)})`` over a few frequencies by one inverse FFT, then the product.

    tokens ``(token, in)``, spectrum ``(k,)``, waves ``(out, k)`` and ``(k, in)``; gives
    ``(token, out)``, unscaled ([gao2024]).
    """
    spectrum = parts["spectrum"]
    rows = _frequency(parts["cos_out"].T, parts["sin_out"].T)
    columns = _frequency(parts["cos_in"], parts["sin_in"])
    shape = (parts["cos_out"].shape[0], parts["cos_in"].shape[1])
    dense = spectrum.new_zeros(shape).index_put((rows, columns), spectrum, accumulate=True)
    delta = torch.fft.ifft2(dense).real * math.prod(shape)
    return tokens @ delta.T


def _frequency(cosine: Tensor, sine: Tensor) -> Tensor:
    """Whole frequencies of waves ``(k, n)``, read off their second entries."""
    n = cosine.shape[1]
    second = [wave.roll(-1, 1)[:, 0] for wave in (sine, cosine)]  # of a wave of one entry that one
    return torch.round(torch.atan2(*second) * (n / (2 * math.pi))).long() % n


@dataclass(frozen=True)
class Fast:
    """A faster product.

    Attributes
    ----------
    transform
        What `product` does, all in one precision.
    factors
        The factors that it needs; the others are not made at all.
    """

    transform: Callable[[Tensor, Parts], Tensor]
    factors: tuple[str, ...]

    def product(self, tokens: Tensor, parts: Parts) -> Tensor:
        """``(token, in)`` to ``(token, out)``, unscaled, computed in float32 or wider."""
        dtype = torch.promote_types(tokens.dtype, torch.float32)
        wide = {name: part.to(dtype) for name, part in parts.items()}
        return self.transform(tokens.to(dtype), wide)


FAST: Mapping[str, Fast] = {
    "circulant": Fast(_circulant, ("kernel",)),
    "fourier": Fast(_fourier, ("spectrum", "cos_out", "sin_out", "cos_in", "sin_in")),
}
"""By the name that a row gives; each equals the row's einsum."""


def fast_of(spec: Spec) -> Fast | None:
    """The faster way that a method names; None where it names none that is known here."""
    return FAST.get(spec.fast)
