"""Decompositions: functions that take an array or a stack and return a `Fit`."""

from tdecomp.decomposition.exploration.explore import Exploration as Exploration
from tdecomp.decomposition.exploration.explore import explore as explore
from tdecomp.decomposition.fit import Fit as Fit
from tdecomp.decomposition.fit import Fits as Fits
from tdecomp.decomposition.fit import Trace as Trace
from tdecomp.decomposition.methods.cp.cp import cp as cp
from tdecomp.decomposition.methods.network.als import als as als
from tdecomp.decomposition.methods.svd import svd as svd
from tdecomp.decomposition.methods.train.tt import mpo as mpo
from tdecomp.decomposition.methods.train.tt import tensor_train as tensor_train
from tdecomp.decomposition.methods.train.tt import tt_round as tt_round
from tdecomp.decomposition.methods.tucker.tucker import hosvd as hosvd
from tdecomp.decomposition.methods.tucker.tucker import tucker as tucker
from tdecomp.decomposition.methods.tucker.tucker2 import tucker2 as tucker2
from tdecomp.decomposition.spectra import Spectra as Spectra
from tdecomp.decomposition.spectra import ranks as ranks
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
    "als",
    "cp",
    "decompose",
    "explore",
    "hosvd",
    "measure",
    "mpo",
    "ranks",
    "relative",
    "svd",
    "tensor_train",
    "tt_round",
    "tucker",
    "tucker2",
]
