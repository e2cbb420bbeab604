"""What a model calls its weights, from its configuration and the headers of its files."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tdecomp.errors import FileError
from tdecomp.files.checkpoint import open_checkpoint
from tdecomp.files.peft_config import n_experts
from tdecomp.files.places import check_inside, is_there
from tdecomp.files.plain import is_list, is_object
from tdecomp.files.storage import local
from tdecomp.files.weight_files import read_json
from tdecomp.stack.names import canonical

__all__ = ["Experts", "ModelNames", "Shape", "read_model_names"]

Shape = tuple[int, ...] | None
"""As stored; None where only an index is there, which says names alone."""

_CONFIG, _PIPELINE = "config.json", "model_index.json"
_NETWORKS = ("transformer", "unet", "text_encoder", "text_encoder_2", "text_encoder_3")
_STACK = re.compile(r"(.+\.experts)\.(gate_up_proj|down_proj|gate_proj|up_proj)(?:_blocks)?")
_SINGLE = re.compile(r"(.+\.experts)\.(\d{1,6})\.(\w+)")
_MOST_EXPERTS = 4096  # of one module; names may say any number
_SHORT = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
_NO_MATRIX = re.compile(r"(?:.*[._])?(?:\w*norm\w*|ln_?\w*|layer_?scale\w*)")


@dataclass(frozen=True, kw_only=True)
class Experts:
    """The experts of one module, however they are stored.

    Attributes
    ----------
    container
        Path of the module that holds them.
    count
        How many; 0 where nothing says it.
    leaves
        Projection (``gate_proj``, ``up_proj``, ``down_proj``) -> what a single expert calls it.
    stacked
        They are stored together, in tensors of three axes.
    interleaved
        Rows of gate and up alternate in the fused tensor (GPT-OSS).
    sizes
        Projection -> (out, in) of one expert, ``gate_up_proj`` for the two side by side; as far as
        it is known.
    """

    container: str
    count: int
    leaves: Mapping[str, str]
    stacked: bool
    interleaved: bool = False
    sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])


@dataclass(frozen=True, kw_only=True)
class ModelNames:
    """Names of a model's modules, as its checkpoint has them.

    Attributes
    ----------
    path
        What was named.
    config
        Its configuration; of a pipeline that of the network.
    modules
        Path of every module with a weight of two axes or more -> the weight's shape. Those of a
        pipeline have the network before them.
    experts
        By container.
    networks
        Networks of a pipeline of diffusers; empty for any other model.
    """

    path: Path
    config: Mapping[str, Any]
    modules: Mapping[str, Shape]
    experts: Mapping[str, Experts] = field(default_factory=dict[str, Experts])
    networks: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """``model_type``, or the class of a network of diffusers; "" where nothing says it."""
        said = self.config.get("model_type") or self.config.get("_class_name")
        return said if isinstance(said, str) else ""

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """``architectures`` of the configuration."""
        named = self.config.get("architectures")
        return tuple(str(name) for name in named) if is_list(named) else ()


def read_model_names(path: str | os.PathLike[str]) -> ModelNames:
    """Names of a model's modules; no weight is read.

    Parameters
    ----------
    path
        A model folder, of which ``config.json`` and an index are enough; a single
        ``.safetensors`` file; or the folder of a pipeline of diffusers.

    Raises
    ------
    FileError
        Nothing is there, there is no configuration, or no module has a weight.
    """
    path = local(path, "models that an adapter is checked against")
    if not path.exists():
        raise FileError(f"{path} does not exist")
    if path.is_dir() and is_there(path / _PIPELINE):
        return _pipeline(path)
    if path.is_dir() and not is_there(path / _CONFIG):
        raise FileError(
            f"{path} has no {_CONFIG}, which says of what type the model is",
            tip="name the folder of the model, as transformers saves it",
        )
    shapes, config = _shapes(path)
    return _names(path, shapes, config)


def _pipeline(path: Path) -> ModelNames:
    """All networks of a pipeline, each with its name before its modules."""
    there = [name for name in _NETWORKS if is_there(path / name / _CONFIG)]
    if not there:
        raise FileError(f"{path} has {_PIPELINE} and none of {', '.join(_NETWORKS)} with a config")
    parts = {name: _names(path / name, *_shapes(path / name)) for name in there}
    first = parts[there[0]]
    return ModelNames(
        path=path,
        config=first.config,
        modules={f"{n}.{m}": s for n, part in parts.items() for m, s in part.modules.items()},
        networks=tuple(there),
    )


def _shapes(path: Path) -> tuple[dict[str, Shape], dict[str, Any]]:
    """Tensors and their shapes, and the configuration beside them."""
    listed = _index_alone(path)
    if listed is not None:
        return dict.fromkeys(listed), read_json(path / _CONFIG)
    checkpoint = open_checkpoint(path)
    shapes: dict[str, Shape] = {
        name: None if name in checkpoint.refused else entry.shape
        for name, entry in checkpoint.entries.items()
    }
    return shapes, checkpoint.config


def _index_alone(path: Path) -> list[str] | None:
    """Names that an index lists, where none of its shards is there."""
    if not path.is_dir():
        return None
    indexes = sorted(p for p in path.glob("*.safetensors.index.json") if is_there(p))
    if not indexes or any(path.glob("*.safetensors")):
        return None
    check_inside(path, indexes[0])
    listed = read_json(indexes[0]).get("weight_map")
    if not is_object(listed):
        raise FileError(f"{indexes[0]} has no weight_map")
    return list(listed)


def _names(path: Path, shapes: Mapping[str, Shape], config: Mapping[str, Any]) -> ModelNames:
    modules: dict[str, Shape] = {}
    stacks: dict[str, Shape] = {}
    for name, shape in shapes.items():
        found = canonical(name)
        module = found.removesuffix(".weight")
        if _STACK.fullmatch(module) and (shape is None or len(shape) > 2):
            stacks[module.removesuffix("_blocks")] = shape
        elif module != found and _is_matrix(module, shape):
            modules[module] = shape
    if not modules and not stacks:
        raise FileError(f"{path} has no module with a weight: is it a model?")
    biased = {canonical(name).rpartition(".")[0] for name in shapes if name.endswith("_proj_bias")}
    experts = _stacked(stacks, biased, config) | _singles(modules, config)
    return ModelNames(path=path, config=config, modules=modules, experts=experts)


def _is_matrix(module: str, shape: Shape) -> bool:
    if shape is None:
        return not _NO_MATRIX.fullmatch(module)
    return len(shape) > 1


def _stacked(
    stacks: Mapping[str, Shape], biased: set[str], config: Mapping[str, Any]
) -> dict[str, Experts]:
    """Experts stored in tensors of three axes; those with biases are as GPT-OSS has them."""
    found: dict[str, Experts] = {}
    for name in stacks:
        container, _, _ = name.rpartition(".")
        own = {s.rpartition(".")[2]: shape for s, shape in stacks.items() if _in(s, container)}
        shape = own.get("down_proj")
        found[container] = Experts(
            container=container,
            count=shape[0] if shape else n_experts(config),
            leaves={p: p for p in ("gate_proj", "up_proj", "down_proj")},
            stacked=True,
            interleaved=container in biased,
            sizes=_stack_sizes(own, turned=container in biased),
        )
    return found


def _in(name: str, container: str) -> bool:
    return name.rpartition(".")[0] == container


def _stack_sizes(own: Mapping[str, Shape], *, turned: bool) -> dict[str, tuple[int, int]]:
    """(out, in) of one expert, from ``(expert, out, in)``, or ``(expert, in, out)`` if turned."""
    sizes: dict[str, tuple[int, int]] = {}
    for leaf, shape in own.items():
        if shape is not None and len(shape) > 2:
            out, in_ = shape[1], math.prod(shape[2:])
            sizes[leaf] = (in_, out) if turned else (out, in_)
    return sizes


def _singles(modules: Mapping[str, Shape], config: Mapping[str, Any]) -> dict[str, Experts]:
    """Experts that are modules of their own."""
    numbers: dict[str, set[int]] = {}
    leaves: dict[str, dict[str, str]] = {}
    sizes: dict[str, dict[str, tuple[int, int]]] = {}
    for name, shape in modules.items():
        if (part := _SINGLE.fullmatch(name)) is None:
            continue
        container, number, leaf = part[1], int(part[2]), part[3]
        proj = _SHORT.get(leaf, leaf)
        numbers.setdefault(container, set()).add(number)
        leaves.setdefault(container, {})[proj] = leaf
        if shape is not None and len(shape) == 2:
            sizes.setdefault(container, {})[proj] = (shape[0], shape[1])
    return {
        container: Experts(
            container=container,
            count=min(max(n_experts(config), max(found) + 1), _MOST_EXPERTS),
            leaves=leaves[container],
            stacked=False,
            sizes=_with_fused(sizes.get(container, {})),
        )
        for container, found in numbers.items()
    }


def _with_fused(sizes: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    both = [sizes[p] for p in ("gate_proj", "up_proj") if p in sizes]
    fused = {"gate_up_proj": (both[0][0] + both[1][0], both[0][1])} if len(both) == 2 else {}
    return {**sizes, **fused}
