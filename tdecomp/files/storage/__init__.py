"""Where files lie: on a disk of this machine, or anywhere that fsspec reaches."""

from .ahead import Range, expect, want
from .protocols import patiently
from .ranged import RangeFile
from .remote import RemoteFile
from .unmapped import UnmappedFile
from .url import Location, Url, from_root, local, place, remembering, shown

__all__ = [
    "Location",
    "Range",
    "RangeFile",
    "RemoteFile",
    "UnmappedFile",
    "Url",
    "expect",
    "from_root",
    "local",
    "patiently",
    "place",
    "remembering",
    "shown",
    "want",
]
