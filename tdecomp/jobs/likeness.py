"""What `compare` reports: adapters, every two of them, and the same site by site."""

from __future__ import annotations

from dataclasses import dataclass, field

from tdecomp.jobs.reports import OPTIONAL, Report

__all__ = ["CompareReport", "ComparedMember", "ComparedPair", "ComparedSite"]


@dataclass(frozen=True, kw_only=True)
class ComparedMember:
    """One adapter.

    Attributes
    ----------
    name, path, base
        The task, where it is, and the base model that it names.
    sites, missing
        Number of its pairs, and of sites of others where it has none.
    rank
        Largest width of a pair.
    norm
        ‖ΔW‖ over all sites.
    intruders
        Intruder dimensions over all sites that the base has; None without a base.
    """

    name: str
    path: str
    base: str
    sites: int
    missing: int
    rank: int
    norm: float
    intruders: int | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True, kw_only=True)
class ComparedPair:
    """Two adapters, at one site or over all.

    Attributes
    ----------
    one, two
        Their names.
    cosine
        ``⟨ΔW₁, ΔW₂⟩ / ‖ΔW₁‖ ‖ΔW₂‖``; 0 where one is zero.
    one_in_two, two_in_one
        Share of the energy of the first that lies in the columns and rows of the second, and back.
    out_overlap, in_overlap
        Mean squared cosine of the principal angles between their columns, and their rows.
    out_angles, in_angles
        Smallest and largest of these angles in degrees; over all sites, the mean of each.
    """

    one: str
    two: str
    cosine: float
    one_in_two: float
    two_in_one: float
    out_overlap: float
    in_overlap: float
    out_angles: tuple[float, float]
    in_angles: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class ComparedSite:
    """One site: its norms by member, its pairs, and the intruder dimensions by member."""

    site: str
    shape: tuple[int, int]
    norms: tuple[float, ...]
    pairs: tuple[ComparedPair, ...]
    intruders: tuple[int, ...] | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True, kw_only=True)
class CompareReport(Report):
    """How alike adapters are.

    Attributes
    ----------
    members, pairs, sites
        Adapters; every two of them over all sites; the same site by site.
    page
        The page that was written, if one was asked for.
    notes
        Sentences on what a user should know.
    """

    members: tuple[ComparedMember, ...]
    pairs: tuple[ComparedPair, ...]
    sites: tuple[ComparedSite, ...]
    page: str | None = field(default=None, metadata=OPTIONAL)
    notes: tuple[str, ...] = ()
