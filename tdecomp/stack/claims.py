"""What a tensor holds: sites or a reason against; the generic rule, which needs no table."""

from __future__ import annotations

import re
from dataclasses import KW_ONLY, dataclass

from tdecomp.stack.names import canonical, is_adapter
from tdecomp.stack.patterns import NUMBER, Labels
from tdecomp.stack.sites import Site

__all__ = ["Claim", "ClaimRank", "generic", "reason_against"]

ClaimRank = tuple[int, str]
"""Order among sites: number of the rule, prefix."""

_LAST = 1_000_000

_EMBEDDING = re.compile(
    r"(.*\.)?((\w+_)?(embed|embeddings?|emb)|embed_(?!out$)\w+|wte|wpe|shared"
    r"|relative_attention_bias)(\.\d+)*"
)
_HEAD = re.compile(
    r"(.*\.)?(lm_heads?|classifier|score|proj_out|embed_out|qa_outputs)(\..*)?"
    r"|.*predictions\.decoder"
)
_NUMBERED_HEAD = re.compile(r"(?:[^.\d][^.]*\.)*(lm_heads?|classifier|score)\.\d+(\..*)?")
# One row per expert, or one row: a gate of the shape of a projection is a projection (RWKV's).
_ROUTER = re.compile(r"(.*\.)?(\w*router\w*(\..*)?|(shared_expert_)?gate|wg)")
# Matrices that are not the ``weight`` of a module: MultiheadAttention's, DBRX's experts.
_BARE = re.compile(r"(.*\.)?((in|q|k|v)_proj_weight|experts\.mlp\.(w1|v1|w2))")
_EXPERTS = re.compile(r"\w*experts?")
_EXPERT = re.compile(rf"expert_({NUMBER})")
_NUMBER = re.compile(NUMBER)


@dataclass(frozen=True)
class Claim:
    """What a tensor holds: sites, or a reason against (neither: no rule knows the name)."""

    sites: tuple[Site, ...] = ()
    rank: ClaimRank = (0, "")
    _: KW_ONLY
    reason: str = ""
    note: str = ""


def generic(
    name: str, shape: tuple[int, ...], *, anywhere: bool = False, heads: bool = False
) -> Claim:
    """Claim a 2-D ``*.weight`` (or a matrix of `_BARE`) under its first numbered segment.

    Label `layer` is that number, `proj` the last name, `expert` a number behind ``experts``; what
    stands between is the role. Segments of wrappers do not count. Never an embedding, and no output
    head, router of experts or part of an adapter. `anywhere`: without a number and routers, too;
    `heads`: even output heads and parts of adapters.
    """
    known = canonical(name)
    module = known.removesuffix(".weight")
    bare = module == known and not _BARE.fullmatch(known)
    if bare or len(shape) != 2 or 0 in shape or _EMBEDDING.fullmatch(module):
        return Claim()
    if is_adapter(name) and not heads:
        return Claim()
    segments = module.split(".")
    at = next((i for i, s in enumerate(segments) if _NUMBER.fullmatch(s)), None)
    if at is None and not anywhere or not heads and _is_head(module, numbered=at is not None):
        return Claim()
    if not anywhere and _is_router(module, shape):
        return Claim()
    before, after = (segments[:at], segments[at + 1 :]) if at is not None else ([], segments)
    labels: Labels = () if at is None else (("layer", int(segments[at])),)
    if after:
        labels += (("proj", after[-1]),)
    between, expert = _without_expert(after[:-1])
    labels += expert
    prefix = ".".join(before)
    role = ".".join(between) or "weight"
    site = Site(
        tensor=name,
        index=(),
        transpose=False,
        labels=labels,
        shape=(shape[0], shape[1]),
        role=role,
        prefix=prefix,
    )
    return Claim((site,), (_LAST, f"{prefix}.{role}"))


def _without_expert(segments: list[str]) -> tuple[list[str], Labels]:
    """Take the number behind ``experts`` out of a path: it is a label."""
    for i, (word, name) in enumerate(zip(segments, segments[1:], strict=False)):
        found = _EXPERT.fullmatch(name)
        number = found[1] if found else name
        if _NUMBER.fullmatch(number) and _EXPERTS.fullmatch(word):
            return [*segments[: i + 1], *segments[i + 2 :]], (("expert", int(number)),)
    return segments, ()


def _is_head(module: str, *, numbered: bool) -> bool:
    """Whether this is an output head; a number behind its name counts its matrices, not layers."""
    return (_NUMBERED_HEAD if numbered else _HEAD).fullmatch(module) is not None


def _is_router(module: str, shape: tuple[int, ...]) -> bool:
    return 2 * shape[0] <= shape[1] and _ROUTER.fullmatch(module) is not None


def reason_against(name: str, shape: tuple[int, ...]) -> str:
    """Say why a tensor that no rule takes is not a site."""
    known = canonical(name)
    module = known.removesuffix(".weight")
    if len(shape) != 2 or 0 in shape:
        return "not a matrix"
    if _EMBEDDING.fullmatch(module):
        return "embedding"
    if _is_router(module, shape):
        return "router or gate"
    if _HEAD.fullmatch(module):
        return "output head"
    if is_adapter(name):
        return "part of another adapter"
    if module == known:
        return "not the weight of a module"
    return "not matched by any pattern"
