"""Decompositions: functions that take an array or a stack and return a `Fit`."""

from tdecomp.decomposition._als.als import als as als
from tdecomp.decomposition._cp.cp import cp as cp
from tdecomp.decomposition._explore.explore import Exploration as Exploration
from tdecomp.decomposition._explore.explore import explore as explore
from tdecomp.decomposition._fit import Fit as Fit
from tdecomp.decomposition._fit import Fits as Fits
from tdecomp.decomposition._fit import Trace as Trace
from tdecomp.decomposition._fit import measure as measure
from tdecomp.decomposition._fit import relative as relative
from tdecomp.decomposition._model import decompose as decompose
from tdecomp.decomposition._sketch import Seen as Seen
from tdecomp.decomposition._sketch import Stream as Stream
from tdecomp.decomposition._spectra import Spectra as Spectra
from tdecomp.decomposition._spectra import ranks as ranks
from tdecomp.decomposition._svd import svd as svd
from tdecomp.decomposition._tt.tt import mpo as mpo
from tdecomp.decomposition._tt.tt import tensor_train as tensor_train
from tdecomp.decomposition._tt.tt import tt_round as tt_round
from tdecomp.decomposition._tucker.tucker import hosvd as hosvd
from tdecomp.decomposition._tucker.tucker import tucker as tucker
from tdecomp.decomposition._tucker.tucker2 import tucker2 as tucker2

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
