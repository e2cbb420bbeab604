"""Packed weights: the table of layouts, how they are found and decoded.

No other code knows a layout: what is found here has a name, a shape and numbers, as a plain tensor.
"""

from .find import LAYOUTS, Found, find_packed
from .guide import layouts_table
from .layout import Layout, Packed

__all__ = ["LAYOUTS", "Found", "Layout", "Packed", "find_packed", "layouts_table"]
