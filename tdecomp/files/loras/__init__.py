"""Adapters as people keep them: read in any naming scheme, written in any."""

from tdecomp.files.loras.adapter_file import AdapterFile as AdapterFile
from tdecomp.files.loras.reading import read_adapter as read_adapter
from tdecomp.files.loras.schemes import SCHEMES as SCHEMES
from tdecomp.files.loras.schemes import NamingScheme as NamingScheme
from tdecomp.files.loras.writing import write_adapter as write_adapter

__all__ = ["SCHEMES", "AdapterFile", "NamingScheme", "read_adapter", "write_adapter"]
