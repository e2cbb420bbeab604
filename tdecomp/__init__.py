"""Tensor decompositions for stacks of weights.

>>> import numpy as np
>>> import tdecomp as td
>>> x = np.random.default_rng(0).standard_normal((3, 2, 16, 12))
>>> fit = td.tucker2(x, budget=500, names="layer proj out in")
>>> fit.tensor.rank, fit.n_params
((7, 7), 490)
"""

from tdecomp.decomposition import Exploration as Exploration
from tdecomp.decomposition import Fit as Fit
from tdecomp.decomposition import Fits as Fits
from tdecomp.decomposition import Spectra as Spectra
from tdecomp.decomposition import Stream as Stream
from tdecomp.decomposition import Trace as Trace
from tdecomp.decomposition import als as als
from tdecomp.decomposition import cp as cp
from tdecomp.decomposition import decompose as decompose
from tdecomp.decomposition import explore as explore
from tdecomp.decomposition import hosvd as hosvd
from tdecomp.decomposition import mpo as mpo
from tdecomp.decomposition import ranks as ranks
from tdecomp.decomposition import svd as svd
from tdecomp.decomposition import tensor_train as tensor_train
from tdecomp.decomposition import tt_round as tt_round
from tdecomp.decomposition import tucker as tucker
from tdecomp.decomposition import tucker2 as tucker2
from tdecomp.errors import ArgumentError as ArgumentError
from tdecomp.errors import DataError as DataError
from tdecomp.errors import FileError as FileError
from tdecomp.errors import NotReached as NotReached
from tdecomp.errors import SiteError as SiteError
from tdecomp.errors import TdecompError as TdecompError
from tdecomp.files.format_file import load as load
from tdecomp.files.format_file import save as save
from tdecomp.formats import CP as CP
from tdecomp.formats import TT as TT
from tdecomp.formats import Format as Format
from tdecomp.formats import LowRank as LowRank
from tdecomp.formats import Network as Network
from tdecomp.formats import Sum as Sum
from tdecomp.formats import Tucker as Tucker
from tdecomp.formats import Tucker2 as Tucker2
from tdecomp.plan import plan as plan
from tdecomp.stack import Group as Group
from tdecomp.stack import Site as Site
from tdecomp.stack import Stack as Stack

__version__ = "0.1.0"

__all__ = [
    "CP",
    "TT",
    "ArgumentError",
    "DataError",
    "Exploration",
    "FileError",
    "Fit",
    "Fits",
    "Format",
    "Group",
    "LowRank",
    "Network",
    "NotReached",
    "Site",
    "SiteError",
    "Spectra",
    "Stack",
    "Stream",
    "Sum",
    "TdecompError",
    "Trace",
    "Tucker",
    "Tucker2",
    "als",
    "cp",
    "decompose",
    "explore",
    "hosvd",
    "load",
    "mpo",
    "plan",
    "ranks",
    "save",
    "svd",
    "tensor_train",
    "tt_round",
    "tucker",
    "tucker2",
]
