"""What a method must satisfy before it meets any weights."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from tdecomp.adapters.expressions import nearest
from tdecomp.adapters.terms import TAKEN, Factor, write_term
from tdecomp.adapters.wraps import WRAPS
from tdecomp.errors import ArgumentError

if TYPE_CHECKING:
    from tdecomp.adapters.spec import Spec

__all__ = ["check_formulas", "check_names", "check_terms", "check_words"]

_WORD = re.compile(r"[^\W\d]\w*")
_MOST_WORDS = 512
_LONGEST_WORD = 100


def check_words(plain: Any) -> None:
    """Refuse a description with so many names that comparing them would take long."""
    words = {word for text in _texts(plain) for word in _WORD.findall(text)}
    if len(words) > _MOST_WORDS or any(len(word) > _LONGEST_WORD for word in words):
        raise ArgumentError(
            f"this is no description of an adapter: it has {len(words)} names, {_MOST_WORDS} of"
            f" {_LONGEST_WORD} characters are the most"
        )


def _texts(plain: Any) -> Iterator[str]:
    """Every text in plain values, those that name others included."""
    if isinstance(plain, str):
        yield plain
    elif isinstance(plain, Mapping):
        for key, value in plain.items():
            yield from (str(key), *_texts(value))
    elif isinstance(plain, list | tuple):
        for value in plain:
            yield from _texts(value)


def check_names(spec: Spec) -> None:
    """Refuse names that are there twice, or that mean something else."""
    wraps = [name for name, *_ in WRAPS[spec.wrap].factors] if spec.wrap else []
    names = [*(f.name for f in spec.factors), *wraps]
    if twice := sorted(n for n in {*names} if names.count(n) > 1):
        raise ArgumentError(f"{spec.name!r} has two factors named {twice[0]!r}: rename one of them")
    if taken := sorted({"alpha", "step"} & {*spec.letters}):
        raise ArgumentError(
            f"{taken[0]!r} in '{spec.equation}' is a number of the scale: use another letter"
        )
    if taken := sorted({*TAKEN, "site"} & dict(spec.where).keys()):
        raise ArgumentError(
            f"where gives {taken[0]!r} of {spec.name!r} a size: that is known already"
        )


def check_formulas(spec: Spec) -> None:
    """Refuse formulas and starts that name what there is not."""
    known = {*spec.letters, *dict(spec.where), *TAKEN}
    named = {n for _, text in spec.where for n in text.names} - known
    # a rank that is no letter, unless it looks like a slip of the pen
    known |= {n for n in named if len(n) < 3 or not nearest(n, known)}
    formulas = [("scale", spec.scale), ("alpha", spec.alpha), *spec.where]
    for f in spec.factors:
        f.init.check(f.name, f.modes)
        if f.init.kind == "copy":
            _check_copy(spec, f)
        else:
            formulas += [(f"the init of {f.name}", arg) for arg in f.init.args]
        if f.freeze is not None:
            formulas.append((f"the freeze of {f.name}", f.freeze))
        if f.clusters is not None:
            _check_clusters(spec, f)
            formulas.append((f"the clusters of {f.name}", f.clusters))
    for what, text in formulas:
        if unknown := sorted(text.names - known):
            raise ArgumentError(
                f"{what} = {text} of {spec.name!r} names {unknown[0]!r}"
                f"{nearest(unknown[0], known)}: there are {', '.join(sorted(known))}"
            )


def _check_clusters(spec: Spec, factor: Factor) -> None:
    label = factor.modes[-1] if factor.modes else ""
    trained = [f for f in spec.factors if f.trainable and label in f.modes]
    if factor.init.kind != "one_hot" or factor.trainable or not trained:
        raise ArgumentError(
            f"clusters of {factor.name!r} of {spec.name!r}: that is for a constant that starts as"
            " one_hot and whose last letter stands in a trained factor, such as '*assign: layer g'"
        )


def _check_copy(spec: Spec, factor: Factor) -> None:
    source = str(factor.init.args[0])
    found = {f.name: f for f in spec.factors if f.init.kind != "copy"}.get(source)
    if found is None or len(found.modes) != len(factor.modes):
        raise ArgumentError(
            f"{factor.name!r} of {spec.name!r} cannot start as {factor.init}: name a factor of"
            " as many axes that is no copy itspec"
        )


def check_terms(spec: Spec) -> None:
    """Refuse products that do not give a weight, and factors that do not fit in."""
    split = {side for axis, side in spec.axes if axis != side}
    axes = {factor.name: factor.modes for factor in spec.factors}
    for term in spec.terms:
        text = write_term(term)
        if missing := [n for n in spec.weight_modes if n not in term.letters]:
            raise ArgumentError(
                f"{missing[0]!r} is in the output of {spec.name!r} but in no factor of"
                f" '{text}': give it a factor (a frozen one of ones repeats values)"
            )
        if clash := sorted(split & set(term.letters)):
            raise ArgumentError(
                f"{clash[0]!r} is split in the output of {spec.name!r}: use its parts in '{text}'"
            )
        for operand in term.operands:
            if operand.factor not in axes:
                raise ArgumentError(
                    f"{operand.factor!r} of '{text}' is no factor of {spec.name!r}: there are"
                    f" {', '.join(axes)}"
                )
            letters = " ".join(operand.letters)
            if len(axes[operand.factor]) != len(operand.letters):
                raise ArgumentError(
                    f"the factor {operand.factor!r} of {spec.name!r} has the axes"
                    f" {' '.join(axes[operand.factor])}, it cannot stand as '{letters}'"
                )
            if len(set(operand.letters)) != len(operand.letters):
                raise ArgumentError(
                    f"'{letters}' of {spec.name!r} has a letter twice: use two letters and a"
                    " frozen 'eye' factor"
                )
    used = {o.factor for term in spec.terms for o in term.operands}
    if unused := [name for name in axes if name not in used]:
        raise ArgumentError(f"the factor {unused[0]!r} of {spec.name!r} stands in no term")
