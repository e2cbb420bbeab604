"""One style for pictures of tensor networks: what is drawn, where it stands, and the SVG text."""

from tdecomp.drawing.chart import Curve as Curve
from tdecomp.drawing.chart import draw_chart as draw_chart
from tdecomp.drawing.drawable import Drawable as Drawable
from tdecomp.drawing.network import Diagram as Diagram
from tdecomp.drawing.network import DrawnProduct as DrawnProduct
from tdecomp.drawing.network import DrawnTensor as DrawnTensor
from tdecomp.drawing.network import Panel as Panel
from tdecomp.drawing.network import numbered as numbered
from tdecomp.drawing.style import DARK as DARK
from tdecomp.drawing.style import LIGHT as LIGHT
from tdecomp.drawing.write import write_svg as write_svg

__all__ = [
    "DARK",
    "LIGHT",
    "Curve",
    "Diagram",
    "Drawable",
    "DrawnProduct",
    "DrawnTensor",
    "Panel",
    "draw_chart",
    "numbered",
    "write_svg",
]
