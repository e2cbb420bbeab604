"""Programs that load adapters: what they call modules, and what becomes of an adapter in them."""

from tdecomp.files.loaders.adapter_names import AdapterNames as AdapterNames
from tdecomp.files.loaders.adapter_names import read_adapter_names as read_adapter_names
from tdecomp.files.loaders.loader import Loader as Loader
from tdecomp.files.loaders.matching import CheckedKey as CheckedKey
from tdecomp.files.loaders.matching import check_names as check_names
from tdecomp.files.loaders.model_names import ModelNames as ModelNames
from tdecomp.files.loaders.model_names import read_model_names as read_model_names
from tdecomp.files.loaders.table import LOADERS as LOADERS
from tdecomp.files.loaders.table import loader_of as loader_of

__all__ = [
    "LOADERS",
    "AdapterNames",
    "CheckedKey",
    "Loader",
    "ModelNames",
    "check_names",
    "loader_of",
    "read_adapter_names",
    "read_model_names",
]
