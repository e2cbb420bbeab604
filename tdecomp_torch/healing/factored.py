"""Decomposed factors as numbers that torch trains, and as factors again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from tdecomp._xp import to_numpy
from tdecomp.errors import SiteError
from tdecomp.files import Factors, GroupFactors
from tdecomp.files.loaded_names import loaded_names
from tdecomp.files.peft_config import facts
from tdecomp.files.safetensors import rounded
from tdecomp.formats import Format
from tdecomp.modes import flatten
from tdecomp_torch.healing.student import Student, exchanged
from tdecomp_torch.model.names import parameters_of

__all__ = ["FactoredStudent"]


@dataclass(frozen=True, eq=False)
class FactoredStudent(Student):
    """The arrays of decomposed factors; the base model computes with ``W + ΔW``.

    Attributes
    ----------
    model
        The base model.
    factors
        As they were.
    weights
        Parameter of the base model by the name that the factors have for it.
    arrays
        By group: those that are trained, and vectors, which stay.
    """

    model: nn.Module
    factors: Factors
    weights: Mapping[str, nn.Parameter]
    arrays: Sequence[Mapping[str, Tensor]] = field(default=())

    @classmethod
    def of(cls, model: nn.Module, factors: Factors) -> FactoredStudent:
        """The factors on a model.

        Raises
        ------
        SiteError
            They are of another model; the first weight is named.
        """
        weights = weights_of(model, factors)
        device = next(iter(weights.values())).device
        arrays = [_trained(_balanced(part.tensor), device) for part in factors.parts]
        return cls(model, factors, weights, arrays)

    def parameters(self) -> list[Tensor]:
        """All arrays but vectors."""
        return [a for own in self.arrays for a in own.values() if a.requires_grad]

    @contextmanager
    def acting(self) -> Iterator[None]:
        """``W + ΔW`` in the place of every weight."""
        with exchanged(self.model, self._new_weights()):
            yield

    def _new_weights(self) -> dict[Tensor, Tensor]:
        found = {name: weight.detach().float().clone() for name, weight in self.weights.items()}
        for part, arrays in zip(self.factors.parts, self.arrays, strict=True):
            tensor = part.tensor.with_arrays(arrays)
            for k, site in enumerate(part.group.sites):
                place = found[site.tensor]
                site.take(place).add_(torch.as_tensor(tensor.matrix(k), device=place.device))
        return {
            weight: found[name].to(weight.dtype).as_subclass(Tensor)
            for name, weight in self.weights.items()
        }

    def healed(self, base: nn.Module, tuned: nn.Module) -> Factors:
        """The factors as they are now, rounded as they are stored, with their errors.

        Parameters
        ----------
        base, tuned
            Models whose difference they stand for.
        """
        old, new = weights_of(base, self.factors), weights_of(tuned, self.factors)
        parts = []
        for part, arrays in zip(self.factors.parts, self.arrays, strict=True):
            code = self.factors.dtype
            host = {n: rounded(a.detach().cpu().numpy(), code) for n, a in arrays.items()}
            tensor = part.tensor.with_arrays(host)
            parts.append(_measured(replace(part, tensor=tensor), old, new))
        return replace(self.factors, parts=tuple(parts))


def weights_of(model: nn.Module, factors: Factors) -> dict[str, nn.Parameter]:
    """The parameters that factors change, by the names that these have for them.

    Raises
    ------
    SiteError
        One is missing, or has another shape.
    """
    parameters = parameters_of(model)
    config = factors.sources.get("base", {}).get("model") or {}
    found = {}
    for name, shape in factors.shapes.items():
        parameter = parameters[_name_in(parameters, name, config)]
        if tuple(parameter.shape) != shape:
            raise SiteError(
                f"{name} is {tuple(parameter.shape)} in this model, and the factors were made for"
                f" {shape}: they are of another model"
            )
        found[name] = parameter
    return found


def _name_in(parameters: Mapping[str, object], name: str, config: Mapping[str, object]) -> str:
    """The parameter of that name, of the one that transformers loads it as, or that ends alike."""
    loaded = loaded_names([name.removesuffix(".weight")], facts(config))
    for known in (name, *(f"{module}.weight" for module in loaded.values())):
        if known in parameters:
            return known
    inside = (p for p in parameters if p.count(".") and name.endswith(f".{p}"))
    near = [*(p for p in parameters if p.endswith(f".{name}")), *inside]
    if len(near) != 1:
        why = "several of its parameters end in it" if near else "it has no such parameter"
        raise SiteError(f"the factors change {name}, and {why}: they are of another model")
    return near[0]


def _balanced(tensor: Format) -> Format:
    """The same tensor, its vectors (singular values, weights) shared out evenly and then ones.

    So that all columns of its bases are trained at the pace of their size.
    """
    terms, arrays = tensor.equation.terms, dict(tensor.arrays)
    if len(terms) != len(arrays):  # a sum, which has an equation for each
        return tensor
    letters = {name: flatten(term) for name, term in zip(arrays, terms, strict=True)}
    for name, array in tensor.arrays.items():
        vector = to_numpy(array)
        if vector.ndim != 1:
            continue
        (letter,) = letters[name]
        holders = [n for n, own in letters.items() if letter in own and n != name]
        if not holders:
            continue
        for k, holder in enumerate(holders):
            part = np.abs(vector) ** (1 / len(holders)) * (np.sign(vector) if k == 0 else 1)
            shape = [-1 if n == letter else 1 for n in letters[holder]]
            arrays[holder] = arrays[holder] * part.reshape(shape)
        arrays[name] = np.ones_like(vector)
    return tensor.with_arrays(arrays)


def _trained(tensor: Format, device: torch.device) -> dict[str, Tensor]:
    found = {}
    for name, array in tensor.arrays.items():
        value = torch.tensor(np.asarray(array), dtype=torch.float32, device=device)
        found[name] = value.requires_grad_(value.dim() > 1)
    return found


def _measured(
    part: GroupFactors, old: Mapping[str, nn.Parameter], new: Mapping[str, nn.Parameter]
) -> GroupFactors:
    """The part with the error of every site."""
    residual, energy = [], []
    for k, site in enumerate(part.group.sites):
        before, after = (
            site.take(w[site.tensor].detach().double().cpu().numpy()) for w in (old, new)
        )
        delta = after - before
        left = delta - np.asarray(part.tensor.matrix(k), dtype=np.float64)
        residual.append(math.fsum(np.square(left).sum(axis=1)))
        energy.append(math.fsum(np.square(delta).sum(axis=1)))
    return replace(part, residual=np.array(residual), energy=np.array(energy))
