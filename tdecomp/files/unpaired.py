"""What has no partner in the other model: told, and refused where it was to be covered."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tdecomp.errors import SiteError
from tdecomp.files.checkpoint import Pair
from tdecomp.stack import Survey, is_adapter
from tdecomp.tasks import sendable

__all__ = ["Uncovered", "differing_sizes", "refuse_missing", "unpaired"]

# Buffers that some releases of a model store and others make anew.
_CONSTANTS = (
    *(".position_ids", ".token_type_ids", ".rotary_emb.inv_freq", ".rotary_pos_emb.inv_freq"),
    *(".attn.masked_bias", ".attention.masked_bias", ".num_batches_tracked", ".n_averaged"),
    ".rope.freqs",
)
_CONSTANT = "a constant of the code"
_MASKS = (".attn.bias", ".attention.bias")
"""Causal masks of GPT-2 and its kin, which have four modes and no bias has."""

_SIZES = (
    "model_type",
    "num_hidden_layers",
    "n_layer",
    "num_layers",
    "hidden_size",
    "n_embd",
    "d_model",
)


@sendable
@dataclass(frozen=True)
class Uncovered:
    """A tensor that the stacks leave out.

    Attributes
    ----------
    tensor, reason
        Its name and why.
    energy
        Squared norm of its delta; None where it is unknown: it has no partner, cannot be decoded,
        or is not finite.
    site
        Whether it was to be covered.
    """

    tensor: str
    reason: str
    energy: float | None
    site: bool = False


def unpaired(both: Pair, survey: Survey, tuned_sites: Collection[str]) -> tuple[Uncovered, ...]:
    """Every tensor of either model that has no partner to be compared with; sites first.

    Parameters
    ----------
    both, survey
        The models and the sites of the base.
    tuned_sites
        Tensors of the tuned model that the same search takes for sites.
    """
    sites = {site.tensor for site in survey.sites} | set(tuned_sites)
    why = {name: "only in the base" for name in both.only_base}
    why |= {
        name: f"{old} in the base, {new} in the tuned model" for name, old, new in both.reshaped
    }
    why |= {
        name: f"{grown.base_rows} rows in the base, {grown.tuned_rows} in the tuned model"
        for name, grown in both.grown.items()
        if name in sites
    }
    decoded = {name for name in both.alike if name not in sites}
    why |= {name: "not floating point" for name in both.ignored if name not in decoded}
    why |= {name: "only in the tuned model" for name in both.only_tuned}
    why |= {name: "stored as codes that are not read" for name in why if name in both.refused}
    why |= {
        name: f"{reason}, {_CONSTANT}" for name, reason in why.items() if _is_constant(both, name)
    }
    rows = [_lone(name, reason, both.doubts.get(name), sites) for name, reason in why.items()]
    return tuple(sorted(rows, key=lambda row: not row.site))


def _lone(name: str, reason: str, doubt: str | None, sites: Collection[str]) -> Uncovered:
    """Row of one tensor without a partner."""
    if reason.endswith(_CONSTANT):
        return Uncovered(name, reason, 0.0)
    if "original_module" in name.split("."):
        return Uncovered(name, f"{reason}, PEFT's copy of what was there before", 0.0)
    if is_adapter(name):
        return Uncovered(name, f"{reason}, of an adapter that is not merged", None, site=True)
    return Uncovered(name, f"{reason}, {doubt}" if doubt else reason, None, site=name in sites)


def _is_constant(both: Pair, name: str) -> bool:
    """Whether a tensor that one model stores alone is a constant of the code, and no weight."""
    entry = both.base.entries.get(name) or both.tuned.entries[name]
    return f".{name}".endswith(_CONSTANTS) or (name.endswith(_MASKS) and len(entry.shape) == 4)


def refuse_missing(both: Pair, missing: Sequence[Uncovered]) -> None:
    """Raise if there are sites without a partner.

    Raises
    ------
    SiteError
        With the first of them, why, and the ways on.
    """
    if not missing:
        return
    first = missing[0]
    lone = f"{first.tensor} is {first.reason}"
    if len(missing) > 1:
        lone += f", and {len(missing) - 1} more sites have no partner"
    if first.tensor in both.refused:
        lone += f" ({both.refused[first.tensor]})"
    where = f"{both.base.path} and {both.tuned.path}"
    if differs := differing_sizes(both):
        where += f" are of different architectures: {differs}"
    elif first.tensor in {name for name, _, _ in both.reshaped}:
        where += " (different architectures?)"
    raise SiteError(
        f"{where}: {lone}: what changed there is unknown",
        tip=f"{_way_on(missing)}, or go on without knowing with allow_missing=True",
    )


def _way_on(missing: Sequence[Uncovered]) -> str:
    if any(is_adapter(row.tensor) for row in missing):
        return "merge the adapter first (merge_and_unload in PEFT)"
    if len(missing) > 1:
        return "leave them out with exclude=NAMES"
    return f"leave it out with exclude={missing[0].tensor.removesuffix('.weight')!r}"


def differing_sizes(both: Pair) -> str:
    """Sizes that the two configurations give differently, as a clause; empty if none."""
    old, new = both.base.config, both.tuned.config
    differing = [k for k in _SIZES if k in old and k in new and old[k] != new[k]]
    return ", ".join(f"{k} {old[k]} and {new[k]}" for k in differing)
