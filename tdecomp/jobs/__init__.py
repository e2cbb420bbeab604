"""Whole jobs on files, as the command line runs them: models in, files and typed reports out.

Nothing is printed. A job that takes long has a keyword ``progress``: a function that is called with
the fraction of a step that is done and the words that name the step.
"""

from tdecomp.jobs.applying import ApplyReport as ApplyReport
from tdecomp.jobs.applying import apply as apply
from tdecomp.jobs.checking import CheckReport as CheckReport
from tdecomp.jobs.checking import check as check
from tdecomp.jobs.comparing import compare as compare
from tdecomp.jobs.decomposing import DecomposeReport as DecomposeReport
from tdecomp.jobs.decomposing import decompose as decompose
from tdecomp.jobs.exploring import ExploreReport as ExploreReport
from tdecomp.jobs.exploring import explore as explore
from tdecomp.jobs.exporting import ExportReport as ExportReport
from tdecomp.jobs.exporting import LoraOptions as LoraOptions
from tdecomp.jobs.exporting import export as export
from tdecomp.jobs.fitting import FitReport as FitReport
from tdecomp.jobs.fitting import export_for as export_for
from tdecomp.jobs.inspecting import InspectReport as InspectReport
from tdecomp.jobs.inspecting import inspect as inspect
from tdecomp.jobs.likeness import CompareReport as CompareReport
from tdecomp.jobs.machine import Machine as Machine
from tdecomp.jobs.merging import MergedMember as MergedMember
from tdecomp.jobs.merging import MergeReport as MergeReport
from tdecomp.jobs.merging import merge as merge
from tdecomp.jobs.reporting import PageReport as PageReport
from tdecomp.jobs.reporting import PageSource as PageSource
from tdecomp.jobs.reporting import report as report
from tdecomp.jobs.resizing import ResizeReport as ResizeReport
from tdecomp.jobs.resizing import resize as resize
from tdecomp.jobs.sharing import BasisReport as BasisReport
from tdecomp.jobs.sharing import SharedMember as SharedMember
from tdecomp.jobs.sharing import TaskReport as TaskReport
from tdecomp.jobs.sharing import add_to_basis as add_to_basis
from tdecomp.jobs.sharing import apply_task as apply_task
from tdecomp.jobs.sharing import basis as basis
from tdecomp.jobs.sharing import basis_info as basis_info
from tdecomp.jobs.sharing import export_task as export_task
from tdecomp.jobs.sharing import remove_from_basis as remove_from_basis
from tdecomp.jobs.stored_factors import FactorsReport as FactorsReport
from tdecomp.jobs.stored_factors import info as info
from tdecomp.jobs.verifying import VerifyReport as VerifyReport
from tdecomp.jobs.verifying import verify as verify
from tdecomp.jobs.workers import Workers as Workers
from tdecomp.stack import Selection as Selection

__all__ = [
    "ApplyReport",
    "BasisReport",
    "CheckReport",
    "CompareReport",
    "DecomposeReport",
    "ExploreReport",
    "ExportReport",
    "FactorsReport",
    "FitReport",
    "InspectReport",
    "LoraOptions",
    "Machine",
    "MergeReport",
    "MergedMember",
    "PageReport",
    "PageSource",
    "ResizeReport",
    "Selection",
    "SharedMember",
    "TaskReport",
    "VerifyReport",
    "add_to_basis",
    "Workers",
    "apply",
    "apply_task",
    "basis",
    "basis_info",
    "check",
    "compare",
    "decompose",
    "explore",
    "export",
    "export_for",
    "export_task",
    "info",
    "inspect",
    "merge",
    "remove_from_basis",
    "report",
    "resize",
    "verify",
]
