"""Files: checkpoints read lazily and without pickle, outputs written all or nothing."""

from tdecomp.files.checkpoint import open_checkpoint as open_checkpoint
from tdecomp.files.delta import open_delta as open_delta
from tdecomp.files.factors import Factors as Factors
from tdecomp.files.factors import GroupFactors as GroupFactors
from tdecomp.files.factors import load_factors as load_factors
from tdecomp.files.factors import save_factors as save_factors
from tdecomp.files.statistics_file import load_statistics as load_statistics
from tdecomp.files.statistics_file import save_statistics as save_statistics

__all__ = [
    "Factors",
    "GroupFactors",
    "load_factors",
    "load_statistics",
    "open_checkpoint",
    "open_delta",
    "save_factors",
    "save_statistics",
]
