"""A trainable adapter as data: an einsum over named modes, and what its factors start as.

The equation says everything about sharing: *weight modes* (``out``, ``in``, or the parts they are
split in) index inside a weight, *site modes* (``layer``, ``proj``, ..., or ``site`` for all of them
at once) say which weight, every other letter is a rank. A factor is shared over exactly the site
modes that it does not carry.
"""
# pyright: reportUnnecessaryIsInstance=false

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from tdecomp._nearest import among, nearest
from tdecomp.adapters.bases import BASES, PLAIN, Base
from tdecomp.adapters.expressions import Expression
from tdecomp.adapters.inits import Init
from tdecomp.adapters.pictured import pictured
from tdecomp.adapters.reading import check_words, read_equation, read_factors
from tdecomp.adapters.terms import SIDES, SITE_MODES, TAKEN, Factor, Term, write_term
from tdecomp.adapters.variants import of_single_heads, with_gate
from tdecomp.adapters.wraps import WRAPS, Wrap
from tdecomp.drawing import Diagram, Drawable, Panel
from tdecomp.errors import ArgumentError
from tdecomp.modes import Axis, flatten, write_axis

__all__ = ["Spec"]


@dataclass(frozen=True, repr=False, kw_only=True)
class Spec(Drawable):
    """An adapter: how ΔW of every site is made of factors.

    Made by `parse`, which reads the equation and checks it.

    Attributes
    ----------
    name
        Name of the adapter.
    terms
        ΔW is their sum.
    factors
        Every array that the terms use, once.
    output
        The two axes of a weight: ``("out", "in")``, an axis split in parts, slowest first, or
        ``("long", "short")`` where the adapter depends on which side is longer (``("short",
        "long")`` where the side of ``out`` counts as the shorter one of a square).
    where
        Sizes of letters, and other numbers, as formulas; a rank that is not here is given by the
        user.
    scale
        What the sum is multiplied by, a formula of ``alpha``, sizes and ``step``.
    alpha
        The paper's alpha, a formula of sizes.
    base
        One of `tdecomp.adapters.bases.BASES`.
    wrap
        A norm taken of ``W + ΔW``, one of `tdecomp.adapters.wraps.WRAPS`, or empty.
    crop
        Weight modes whose parts may multiply to more than their size; the rest is cut off.
    fast
        Name of a faster way to the same product in `tdecomp_torch`, or empty.
    source
        Where the adapter is published.
    """

    name: str
    terms: tuple[Term, ...]
    factors: tuple[Factor, ...]
    output: tuple[Axis, Axis] = ("out", "in")
    where: tuple[tuple[str, Expression], ...] = ()
    scale: Expression = field(default_factory=lambda: Expression("1"))
    alpha: Expression = field(default_factory=lambda: Expression("1"))
    base: str = PLAIN
    wrap: str = ""
    crop: tuple[str, ...] = ()
    fast: str = ""
    source: str = ""

    @classmethod
    def parse(
        cls,
        name: str,
        equation: str,
        init: str | Sequence[str] | Mapping[str, str],
        *,
        where: Mapping[str, str | int] | None = None,
        modes: Mapping[str, str] | None = None,
        freeze: Mapping[str, str] | None = None,
        across: Sequence[str] = (),
        clusters: Mapping[str, str] | None = None,
        unit: Mapping[str, str] | None = None,
        scale: str | float = "1",
        alpha: str | float = "1",
        base: str = PLAIN,
        wrap: str = "",
        crop: Sequence[str] = (),
        fast: str = "",
        source: str = "",
    ) -> Spec:
        """Read an equation over named modes.

        Parameters
        ----------
        name
            Name of the adapter.
        equation
            ``"out r, site r s, s in"``: operands are separated by commas, terms by ``+`` or ``-``.
            ``*`` before an operand freezes it; ``b: out r`` names the factor, which may then be
            used again (``b: in r``). ``-> (head hd) in`` splits a weight mode.
        init
            How each factor starts, see `tdecomp.adapters.inits`: by name, in order of appearance,
            or one for all.
        where
            Formula for the size of a letter: ``{"g": "ceil(in / r)"}``.
        modes
            Axes of a factor that differ from those of its first use: ``{"a": "n r"}``.
        freeze, across, clusters, unit
            See `Factor`, by factor name: ``unit={"b": "out"}`` makes the columns of ``b: out r``
            directions.
        scale, alpha, base, wrap, crop, fast, source
            See `Spec`.

        Raises
        ------
        ArgumentError
            Naming the part that cannot be read or does not fit.

        Examples
        --------
        >>> lotr = Spec.parse(
        ...     "lotr", "out r, site r s, s in", ["normal", "zeros", "normal"], scale="alpha / r"
        ... )
        >>> print(lotr.equation)
        out_r: out r, site_r_s: site r s, s_in: s in -> out in
        >>> lotr.starts_at_zero
        True
        """
        if not isinstance(equation, str) or not isinstance(init, str | Sequence | Mapping):
            raise ArgumentError(
                f"{name!r} needs an equation as text and then its inits, got {equation!r} and"
                f" {init!r}"
            )
        terms, frozen, output = read_equation(equation)
        factors = read_factors(
            name,
            equation,
            terms,
            frozen,
            init,
            modes=modes,
            freeze=freeze,
            across=across,
            clusters=clusters,
            unit=unit,
        )
        return cls(
            name=name,
            terms=terms,
            factors=factors,
            output=output,
            where=tuple((n, Expression(str(text))) for n, text in (where or {}).items()),
            scale=Expression(str(scale)),
            alpha=Expression(str(alpha)),
            base=base,
            wrap=wrap,
            crop=tuple(crop),
            fast=fast,
            source=source,
        )

    def __post_init__(self):
        for what, given, known in (("base", self.base, BASES), ("wrap", self.wrap or None, WRAPS)):
            if given is not None and given not in known:
                raise ArgumentError(
                    f"{what}={given!r}{nearest(given, known)}: expected one of"
                    f" {among(given, known)}"
                )
        if self.wrap and self.base != PLAIN:
            raise ArgumentError(
                f"{self.name!r}: a wrap goes with base={PLAIN!r}, not {self.base!r}"
            )
        if (
            len(self.output) != 2
            or any(isinstance(a, str) and a != side for a, side in self.axes)
            or len(set(self.weight_modes)) != len(self.weight_modes)
        ):
            raise ArgumentError(
                f"the output of {self.name!r} must be two axes, out and in (or long and short),"
                " each whole or its parts in brackets: got"
                f" {' '.join(map(write_axis, self.output))}"
            )
        if wrong := [side for side in self.crop if side not in self.sides]:
            raise ArgumentError(f"crop={wrong[0]!r}: expected {' or '.join(self.sides)}")
        _check_names(self)
        _check_terms(self)
        _check_formulas(self)

    @property
    def base_rule(self) -> Base:
        """What stands beside ΔW in the adapted weight."""
        return BASES[self.base]

    @property
    def wrap_rule(self) -> Wrap | None:
        """The norm taken of ``W + ΔW``, if any."""
        return WRAPS[self.wrap] if self.wrap else None

    @property
    def adds(self) -> bool:
        """Whether the adapted weight is ``W + ΔW``, so that several adapters add up."""
        return self.wrap_rule is None and self.base_rule.keeps

    @property
    def axes(self) -> Iterable[tuple[Axis, str]]:
        """Both axes of the output and the sides that they stand for."""
        return zip(self.output, self.sides, strict=True)

    @cached_property
    def sides(self) -> tuple[str, str]:
        """Names of the two output axes: one of `SIDES`."""
        for sides in SIDES:
            if any(axis == side for axis, side in zip(self.output, sides, strict=False)):
                return sides
        return SIDES[0]

    @cached_property
    def weight_modes(self) -> tuple[str, ...]:
        """Letters of the output: the modes that index inside a weight."""
        return flatten(self.output)

    @cached_property
    def letters(self) -> tuple[str, ...]:
        """Every letter of the equation and of the factors' own axes."""
        used = [n for term in self.terms for n in term.letters]
        return tuple(dict.fromkeys((*used, *(n for f in self.factors for n in f.modes))))

    @cached_property
    def equation(self) -> str:
        """The equation as `parse` reads it, every factor named."""
        frozen = {factor.name for factor in self.factors if not factor.trainable}
        text = ""
        for term in self.terms:
            sign = "- " if term.sign < 0 else "+ " if text else ""
            text += f"{' ' if text else ''}{sign}{write_term(term, frozen)}"
        return f"{text} -> {' '.join(map(write_axis, self.output))}"

    def __repr__(self) -> str:
        return f"Spec({self})"

    def __str__(self) -> str:
        return f"{self.name}: {self.equation}"

    def diagram(self) -> Diagram:
        """What `td.draw` draws: every factor, what is shared, trained and frozen."""
        wrap = () if self.wrap_rule is None else self.wrap_rule.factors
        products = pictured(self.terms, self.factors, self.output, sites=SITE_MODES, wrap=wrap)
        return Diagram((Panel(title=self.name, products=products, notes=self._notes),))

    @property
    def _notes(self) -> tuple[str, ...]:
        """What the picture does not show: equation, base rule, scale, sizes of letters."""
        lines = [self.equation, self.base_rule.says]
        if self.wrap:
            lines.append(f"its norm over {self.wrap} is trained apart")
        lines += [f"{f.name} has norm 1 along {' '.join(f.unit)}" for f in self.factors if f.unit]
        lines.append(f"scale {self.scale}")
        lines += [f"{name} = {text}" for name, text in self.where]
        return tuple(lines)

    def factor(self, name: str) -> Factor:
        """Look up a factor by name."""
        return next(factor for factor in self.factors if factor.name == name)

    @cached_property
    def starts_at_zero(self) -> bool:
        """Whether the adapted weight is W at the start, as far as the inits tell.

        True where every term has a factor that starts as zeros or is taken off again (a residual
        base), and for a scale that is 0 at ``step = 0``.
        """
        if not self.base_rule.keeps:
            return False
        whole = self.expanded
        zeros = {f.name for f in whole.factors if f.init.kind == "zeros"}
        source = {f.name: str(f.init.args[0]) for f in whole.factors if f.init.kind == "copy"}
        left: Counter[tuple[bool, tuple[tuple[str, tuple[str, ...]], ...]]] = Counter()
        for term in whole.terms:
            operands = [(source.get(o.factor, o.factor), o.letters) for o in term.operands]
            if zeros.isdisjoint(name for name, _ in operands):
                left[term.scaled, tuple(sorted(operands))] += term.sign
        rest = {scaled for (scaled, _), times in left.items() if times}
        return False not in rest and (not rest or self._scale_starts_at_zero)

    @property
    def formulas(self) -> Iterator[tuple[str, Expression]]:
        """Everything that is computed, and what it is."""
        yield from (("scale", self.scale), ("alpha", self.alpha), *self.where)
        for f in self.factors:
            if f.init.kind != "copy":
                yield from ((f"the init of {f.name}", arg) for arg in f.init.args)
            if f.freeze is not None:
                yield f"the freeze of {f.name}", f.freeze
            if f.clusters is not None:
                yield f"the clusters of {f.name}", f.clusters

    @property
    def has_alpha(self) -> bool:
        """Whether anything depends on alpha."""
        return any("alpha" in formula.names for _, formula in self.formulas)

    @property
    def _scale_starts_at_zero(self) -> bool:
        names = self.scale.names
        return "step" in names and self.scale(dict.fromkeys(names, 1) | {"step": 0}) == 0

    @cached_property
    def expanded(self) -> Spec:
        """The same adapter with its base rule written out as terms; see `bases`."""
        expand = self.base_rule.expand
        if expand is None:
            return self
        terms, factors = expand(self.terms, self.factors, self.output)
        return replace(self, terms=terms, factors=factors, base=PLAIN)

    def open_ranks(
        self, known: Collection[str] = SITE_MODES, given: Collection[str] = ()
    ) -> tuple[str, ...]:
        """Letters whose size only the user can say: those that ``rank=8`` sets.

        Parameters
        ----------
        known
            Site modes that the weights have.
        given
            Letters that have a size already.

        Examples
        --------
        >>> mora = Spec.parse(
        ...     "m",
        ...     "m: a b, *up: k, *down: g -> (k a) (g b)",
        ...     {"m": "zeros", "up": "ones", "down": "ones"},
        ...     where={"a": "2 * q", "b": "a"},
        ... )
        >>> mora.open_ranks()
        ('q',)
        """
        rules = dict(self.where)
        used = {n for text in rules.values() for n in text.names}
        named = {*self.letters, *used} - {*known, *rules, *TAKEN, "site"}
        named -= self._parts_that_follow({*known, *given})
        return tuple(sorted(n for n in named if n in used or n not in self.weight_modes))

    def _parts_that_follow(self, known: set[str]) -> set[str]:
        """Parts of a weight whose size is what the other parts leave."""
        rules = dict(self.where)
        found: set[str] = set()
        for axis in self.output:
            parts = {*flatten((axis,))}
            free = parts - known - rules.keys()
            needed: set[str] = set()
            more = parts - free
            while more:
                needed |= more
                more = {m for n in more & rules.keys() for m in rules[n].names} - needed
            if len(free) == 1 and not free & needed:
                found |= free
        return found

    def gated(self, letter: str, init: str = "ones", *, trainable: bool = True) -> Spec:
        """The same adapter with a vector per site on the edge of one rank.

        Every term with `letter` gets one more operand ``site letter``: a gate that can be trained,
        pruned or set by hand (SoRA, AdaLoRA, DyLoRA, DropLoRA).

        >>> lora = Spec.parse("lora", "b: site out r, a: site r in", ["zeros", "normal(1)"])
        >>> lora.gated("r").equation
        'b: site out r, a: site r in, gate_r: site r -> out in'
        """
        if letter not in self.letters or letter in (*self.weight_modes, *SITE_MODES, *TAKEN):
            raise ArgumentError(
                f"no rank {letter!r} in '{self.equation}'{nearest(letter, self.letters)}"
            )
        gate = Factor(
            name=f"gate_{letter}",
            modes=("site", letter),
            init=Init.parse(init),
            trainable=trainable,
        )
        terms, factors = with_gate(self.terms, self.factors, letter, gate)
        return replace(self, terms=terms, factors=factors)

    def over_heads(self) -> Spec:
        """The same adapter for single heads: each is a weight ``hd x in`` of its own.

        `head` becomes a site mode that stands for `proj` too, so that queries, keys and values
        with different numbers of heads are one ragged stack. A factor of `proj` alone goes, and
        with it the rank that only it had.

        >>> lorta = Spec.parse("lorta", "hd r, head r, proj r, in r -> (head hd) in", "normal")
        >>> lorta.over_heads().equation
        'hd_r: out r, head_r: head r, in_r: in r -> out in'
        """
        if self.output[0] != ("head", "hd"):
            raise ArgumentError(
                f"{self.name!r} does not split heads, '(head hd)': it cannot be put on single heads"
            )
        terms, factors = of_single_heads(self.terms, self.factors)
        return replace(self, terms=terms, factors=factors, output=("out", "in"))

    def to_json(self) -> dict[str, Any]:
        """Plain values, from which `from_json` makes an equal spec.

        A truncated base written out (`expanded`) has terms that no equation can say: refused.
        """
        if not all(term.scaled for term in self.terms):
            raise ArgumentError(
                f"{self.name!r} has terms without the scale: write the adapter as it was before"
                " expanded"
            )
        plain: dict[str, Any] = {
            "name": self.name,
            "equation": self.equation,
            "init": {f.name: str(f.init) for f in self.factors},
            "modes": {f.name: " ".join(f.modes) for f in self.factors},
            "freeze": {f.name: str(f.freeze) for f in self.factors if f.freeze},
            "across": [f.name for f in self.factors if f.across],
            "clusters": {f.name: str(f.clusters) for f in self.factors if f.clusters},
            "unit": {f.name: " ".join(f.unit) for f in self.factors if f.unit},
            "where": {name: str(text) for name, text in self.where},
            "scale": str(self.scale),
            "alpha": str(self.alpha),
            "base": self.base,
            "wrap": self.wrap,
            "crop": list(self.crop),
            "fast": self.fast,
            "source": self.source,
        }
        return {key: value for key, value in plain.items() if value not in ({}, [], "")}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Spec:
        """Read what `to_json` wrote; it may have no more words than any adapter has a use for."""
        check_words(plain)
        try:
            return cls.parse(**plain)
        except TypeError as error:
            raise ArgumentError(f"this is not a description of an adapter: {error}") from None


def _check_names(spec: Spec) -> None:
    """Refuse names that are there twice, or that mean something else."""
    wraps = () if spec.wrap_rule is None else spec.wrap_rule.factors
    names = [*(f.name for f in spec.factors), *(name for name, *_ in wraps)]
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


def _check_formulas(spec: Spec) -> None:
    """Refuse formulas and starts that use an undefined name."""
    known = {*spec.letters, *dict(spec.where), *TAKEN}
    named = {n for _, text in spec.where for n in text.names} - known
    # a name outside the equation is a rank, unless it looks like a misspelt one
    known |= {n for n in named if len(n) < 3 or not nearest(n, known)}
    for f in spec.factors:
        f.init.check(f.name, f.modes)
        if f.init.kind == "copy":
            _check_copy(spec, f)
        if f.clusters is not None:
            _check_clusters(spec, f)
    for what, text in spec.formulas:
        if unknown := sorted(text.names - known):
            raise ArgumentError(
                f"{what} = {text} of {spec.name!r} names {unknown[0]!r}"
                f"{nearest(unknown[0], known)}: there are {among(unknown[0], sorted(known))}"
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
            " as many axes that is not itself a copy"
        )


def _check_unit(spec: Spec, factor: Factor) -> None:
    """Refuse a norm over what is not an axis, over weights, or over more than a term takes."""
    own = [n for n in factor.modes if n not in SITE_MODES or n in spec.weight_modes]
    if wrong := [n for n in factor.unit if n not in own]:
        raise ArgumentError(
            f"unit of {factor.name!r} of {spec.name!r} names {wrong[0]!r}: expected axes of it"
            f" inside of a weight, {' '.join(own)}"
        )
    cut = factor.across or any(
        o.letters != factor.modes
        for term in spec.terms
        for o in term.operands
        if o.factor == factor.name
    )
    if factor.unit and cut:
        raise ArgumentError(
            f"unit of {factor.name!r} of {spec.name!r}: a factor with a norm of 1 stands with its"
            " own letters everywhere, and is not held across groups"
        )


def _check_terms(spec: Spec) -> None:
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
                    f"{operand.factor!r} of '{text}' is not a factor of {spec.name!r}: there are"
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
    for factor in spec.factors:
        _check_unit(spec, factor)
    used = {o.factor for term in spec.terms for o in term.operands}
    if unused := [name for name in axes if name not in used]:
        raise ArgumentError(f"the factor {unused[0]!r} of {spec.name!r} stands in no term")
