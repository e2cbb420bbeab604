"""Decompositions: functions that take an array or a stack and return a `Fit`."""

# ruff: noqa: F403, F405 - the names of the table are listed there

from tdecomp.decomposition import table as table
from tdecomp.decomposition.exploration.explore import Exploration as Exploration
from tdecomp.decomposition.exploration.explore import explore as explore
from tdecomp.decomposition.fit import Fit as Fit
from tdecomp.decomposition.fit import Fits as Fits
from tdecomp.decomposition.fit import Trace as Trace
from tdecomp.decomposition.methods.train.tt import tt_round as tt_round
from tdecomp.decomposition.spectra import Spectra as Spectra
from tdecomp.decomposition.spectra import ranks as ranks
from tdecomp.decomposition.table import *
from tdecomp.decomposition.whole_model import decompose as decompose
from tdecomp.passes.residual import measure as measure
from tdecomp.passes.residual import relative as relative
from tdecomp.passes.stream import Seen as Seen
from tdecomp.passes.stream import Stream as Stream

__all__ = [
    "Exploration",
    "Fit",
    "Fits",
    "Seen",
    "Spectra",
    "Stream",
    "Trace",
    "decompose",
    "explore",
    "measure",
    "ranks",
    "relative",
    "tt_round",
]
__all__ += table.__all__
