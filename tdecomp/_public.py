"""All public names of `tdecomp`; loaded when the first of them is asked for."""

# ruff: noqa: F403, F405 - the decompositions are listed in their table

from typing import TYPE_CHECKING

from tdecomp._plan import plan as plan
from tdecomp.decomposition import Exploration as Exploration
from tdecomp.decomposition import Fit as Fit
from tdecomp.decomposition import Fits as Fits
from tdecomp.decomposition import Spectra as Spectra
from tdecomp.decomposition import Stream as Stream
from tdecomp.decomposition import Trace as Trace
from tdecomp.decomposition import decompose as decompose
from tdecomp.decomposition import explore as explore
from tdecomp.decomposition import ranks as ranks
from tdecomp.decomposition import table as table
from tdecomp.decomposition import tt_round as tt_round
from tdecomp.decomposition.table import *
from tdecomp.errors import ArgumentError as ArgumentError
from tdecomp.errors import DataError as DataError
from tdecomp.errors import FileError as FileError
from tdecomp.errors import NotReached as NotReached
from tdecomp.errors import SiteError as SiteError
from tdecomp.errors import TdecompError as TdecompError
from tdecomp.errors import WorkerError as WorkerError
from tdecomp.formats import CP as CP
from tdecomp.formats import TT as TT
from tdecomp.formats import Format as Format
from tdecomp.formats import LowRank as LowRank
from tdecomp.formats import Network as Network
from tdecomp.formats import Sum as Sum
from tdecomp.formats import Tucker as Tucker
from tdecomp.formats import Tucker2 as Tucker2
from tdecomp.stack import Group as Group
from tdecomp.stack import Site as Site
from tdecomp.stack import Stack as Stack

if TYPE_CHECKING:  # the package loads these when they are asked for
    from tdecomp.files.format_file import load as load
    from tdecomp.files.format_file import save as save
    from tdecomp.picture import Picture as Picture
    from tdecomp.picture import draw as draw

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
    "Picture",
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
    "WorkerError",
    "decompose",
    "draw",
    "explore",
    "load",
    "plan",
    "ranks",
    "save",
    "tt_round",
]
__all__ += table.__all__
