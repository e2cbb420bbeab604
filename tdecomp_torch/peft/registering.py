"""Making the method known to PEFT, whose list of methods is closed.

Every released version looks methods up in four mappings, which `register_peft_method` fills, and
refuses names that are no member of its enum: the member is added first.
"""

from __future__ import annotations

import warnings
from typing import Any

import peft
from packaging.version import Version
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import PeftType, register_peft_method

from tdecomp.errors import ArgumentError
from tdecomp_torch.peft.config import TensorAdapterConfig
from tdecomp_torch.peft.model import TensorAdapterModel
from tdecomp_torch.peft.names import METHOD, PREFIX
from tdecomp_torch.peft.refusing import name_the_export

__all__ = ["OLDEST", "TOO_NEW", "check_version", "register"]

OLDEST, TOO_NEW = Version("0.19"), Version("0.22")
"""Versions of PEFT that are tested: from the first, up to but without the second."""


def register() -> None:
    """Make `TensorAdapterConfig` a method of PEFT; once is enough, again does nothing.

    Raises
    ------
    ArgumentError
        PEFT is older than the oldest version that is tested.
    """
    check_version(peft.__version__)
    member = _member(METHOD)
    if member not in PEFT_TYPE_TO_CONFIG_MAPPING:
        register_peft_method(
            name=METHOD.lower(),
            config_cls=TensorAdapterConfig,
            model_cls=TensorAdapterModel,
            prefix=PREFIX,
        )
    name_the_export()


def check_version(installed: str) -> None:
    """Refuse a PEFT that is too old, warn of one that is newer than all tested ones.

    Raises
    ------
    ArgumentError
        Names both versions.
    """
    version = Version(installed)
    tested = f"tdecomp_torch.peft is tested with PEFT {OLDEST} up to {TOO_NEW} (exclusive)"
    if version < OLDEST:
        raise ArgumentError(f"{tested}, and {installed} is installed: pip install -U peft")
    if version.release[:2] >= TOO_NEW.release[:2]:
        warnings.warn(
            f"{tested}, and {installed} is installed: if something fails, pip install"
            f" 'peft<{TOO_NEW}'",
            stacklevel=2,
        )


def _member(name: str) -> PeftType:
    """A member of PEFT's enum, added if it is not there."""
    if name in PeftType.__members__:
        return PeftType[name]
    member: Any = str.__new__(PeftType, name)
    member._name_, member._value_ = name, name
    member.__objclass__, member._sort_order_ = PeftType, len(PeftType)
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    type.__setattr__(PeftType, name, member)
    return member
