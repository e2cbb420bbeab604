"""Every way to merge by name. A new one is a rule, with its place, in a row here.

A rule that means one thing on deltas and another in common bases has a row for each place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from tdecomp._nearest import among, nearest
from tdecomp.collections.merging.combinations import (
    Karcher,
    Mean,
    ModelStock,
    MultiSlerp,
    Slerp,
    TaskDifference,
    WeightedSum,
)
from tdecomp.collections.merging.entrywise import (
    Breadcrumbs,
    Dare,
    DareTies,
    Della,
    MagnitudePrune,
    SelectAndErase,
    Ties,
)
from tdecomp.collections.merging.informed import FisherMean, RegressionMean
from tdecomp.collections.merging.places import (
    by_inputs,
    dense,
    in_aligned_space,
    in_factors,
    lost_in_bases,
    on_cores,
)
from tdecomp.collections.merging.rule import MergeRule
from tdecomp.collections.merging.site import Merged, MergeSite
from tdecomp.collections.merging.spectral import (
    Isotropic,
    LowRankEstimate,
    TaskSingularVectors,
    TuckerOverTasks,
)
from tdecomp.errors import ArgumentError

__all__ = ["MERGES", "MergeMethod", "merge_method"]


@dataclass(frozen=True)
class MergeMethod:
    """A row: a rule, and where it works.

    Attributes
    ----------
    name
        To ask for it.
    rule
        Its fields are the options.
    place
        What turns the rule into a function of a site.
    source
        Key in ``docs/references.bib``; "tdecomp" for what is written down nowhere else.
    needs
        Fields of a `MergeSite` without which it cannot work: ``fishers``, ``inputs``.
    losses
        Of a rule that keeps a part of every member: ``(rule, site) -> ‖kept − ΔW_t‖²``.
    """

    name: str
    rule: type[MergeRule]
    place: Callable[[Any, MergeSite], Merged]
    source: str
    needs: tuple[str, ...] = ()
    losses: Callable[[Any, MergeSite], tuple[float, ...]] | None = None

    @property
    def sentence(self) -> str:
        """What it does, in one line without a full stop."""
        return (self.rule.__doc__ or "").partition("\n")[0].removesuffix(".")

    @property
    def where(self) -> str:
        """``factors``, ``cores`` or ``dense``: what its cost and its exactness depend on."""
        return _WHERE[self.place]

    def with_options(self, **options: Any) -> MergeRule:
        """The rule; refuses options that it does not have."""
        known = [f.name for f in fields(self.rule)]
        for name in options:
            if name not in known:
                raise ArgumentError(
                    f"{self.name} has no option {name!r}{nearest(name, known)}: it has "
                    + ", ".join(known)
                )
        kinds = {f.name: f.type for f in fields(self.rule)}
        for name, value in options.items():
            whole = "int" in str(kinds[name])
            if not math.isfinite(value) or (whole and (value != int(value) or value < 1)):
                wanted = "a whole number, 1 or more" if whole else "a finite number"
                raise ArgumentError(f"{self.name}: {name}={value!r} should be {wanted}")
        return self.rule(**{n: int(v) if "int" in str(kinds[n]) else v for n, v in options.items()})

    def __call__(self, site: MergeSite, rule: MergeRule | None = None) -> Merged:
        """The merged delta of one site, by a rule that `with_options` made.

        >>> import numpy as np
        >>> ones = (np.ones((3, 1)), np.ones((1, 4)))
        >>> site = MergeSite(name="w", pairs=(ones, ones), weights=(1.0, 2.0))
        >>> float(MERGES["weighted_sum"](site).dense()[0, 0])
        3.0
        """
        for name in self.needs:
            if not getattr(site, name):
                raise ArgumentError(f"{self.name} needs {_WORDS[name]} of every member")
        return self.place(self.rule() if rule is None else rule, site)


_WHERE: Mapping[Callable[[Any, MergeSite], Merged], str] = {
    in_factors: "factors",
    by_inputs: "factors",
    on_cores: "cores",
    in_aligned_space: "cores",
    dense: "dense",
}
_WORDS: Mapping[str, str] = {
    "fishers": "the Fisher diagonal",
    "inputs": "the second moment of the inputs",
}

_ROWS = (
    MergeMethod("mean", Mean, in_factors, "wortsman2022"),
    MergeMethod("weighted_sum", WeightedSum, in_factors, "ilharco2023"),
    MergeMethod("task_arithmetic", WeightedSum, in_factors, "ilharco2023"),
    MergeMethod("difference", TaskDifference, in_factors, "ilharco2023"),
    MergeMethod("slerp", Slerp, in_factors, "shoemake1985"),
    MergeMethod("multi_slerp", MultiSlerp, in_factors, "goddard2024"),
    MergeMethod("karcher", Karcher, in_factors, "karcher1977"),
    MergeMethod("model_stock", ModelStock, in_factors, "jang2024"),
    MergeMethod("regmean", RegressionMean, by_inputs, "jin2023", needs=("inputs",)),
    MergeMethod("knots", Ties, in_aligned_space, "stoica2025"),
    MergeMethod("tsv", TaskSingularVectors, on_cores, "gargiulo2025"),
    MergeMethod("iso_c", Isotropic, on_cores, "marczak2025"),
    MergeMethod("lore", LowRankEstimate, on_cores, "liu2025lore"),
    MergeMethod("tucker", TuckerOverTasks, on_cores, "tdecomp", losses=lost_in_bases),
    MergeMethod("ties_on_cores", Ties, on_cores, "panariello2025"),
    MergeMethod("dare_on_cores", Dare, on_cores, "panariello2025"),
    MergeMethod("dare_ties_on_cores", DareTies, on_cores, "panariello2025"),
    MergeMethod("della_on_cores", Della, on_cores, "panariello2025"),
    MergeMethod("magnitude_prune_on_cores", MagnitudePrune, on_cores, "panariello2025"),
    MergeMethod("breadcrumbs_on_cores", Breadcrumbs, on_cores, "panariello2025"),
    MergeMethod("sce_on_cores", SelectAndErase, on_cores, "panariello2025"),
    MergeMethod("ties", Ties, dense, "yadav2023"),
    MergeMethod("dare", Dare, dense, "yu2024"),
    MergeMethod("dare_ties", DareTies, dense, "yu2024"),
    MergeMethod("della", Della, dense, "deep2024"),
    MergeMethod("magnitude_prune", MagnitudePrune, dense, "yadav2023"),
    MergeMethod("breadcrumbs", Breadcrumbs, dense, "davari2024"),
    MergeMethod("sce", SelectAndErase, dense, "wan2024"),
    MergeMethod("fisher", FisherMean, dense, "matena2022", needs=("fishers",)),
)

MERGES: Mapping[str, MergeMethod] = {row.name: row for row in _ROWS}


def merge_method(name: str) -> MergeMethod:
    """Look up a way to merge.

    Raises
    ------
    ArgumentError
        There is none of that name.
    """
    if name not in MERGES:
        near = nearest(str(name), MERGES)
        raise ArgumentError(f"method {name!r}{near}: expected one of {among(str(name), MERGES)}")
    return MERGES[name]
