"""Adapters as `tdecomp_torch` saves them, read without torch: what their files say."""

from tdecomp.files.attached.description import BESIDES as BESIDES
from tdecomp.files.attached.description import KEY as KEY
from tdecomp.files.attached.description import START as START
from tdecomp.files.attached.description import VERSION as VERSION
from tdecomp.files.attached.description import AdapterDescription as AdapterDescription
from tdecomp.files.attached.description import read_description as read_description

__all__ = ["BESIDES", "KEY", "START", "VERSION", "AdapterDescription", "read_description"]
