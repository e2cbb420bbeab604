"""One style for pictures of tensor networks: what is drawn, where it stands, and the SVG text."""

from tdecomp.drawing.drawable import Drawable as Drawable
from tdecomp.drawing.network import Diagram as Diagram
from tdecomp.drawing.network import DrawnProduct as DrawnProduct
from tdecomp.drawing.network import DrawnTensor as DrawnTensor
from tdecomp.drawing.network import Panel as Panel
from tdecomp.drawing.network import numbered as numbered
from tdecomp.drawing.write import write_svg as write_svg

__all__ = ["Diagram", "Drawable", "DrawnTensor", "Panel", "DrawnProduct", "numbered", "write_svg"]
