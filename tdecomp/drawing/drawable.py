"""What notebooks show of an object: its picture, and its line of text below."""

from __future__ import annotations

from abc import ABC, abstractmethod
from html import escape

from tdecomp.drawing.network import Diagram
from tdecomp.drawing.write import write_svg

__all__ = ["Drawable"]

_TENSORS = 32  # more are a line of text in a notebook; `td.draw` draws any number


class Drawable(ABC):
    """Base of everything that `td.draw` draws."""

    @abstractmethod
    def diagram(self) -> Diagram:
        """What a picture shows; made of names and shapes, no number is read."""

    def _repr_html_(self) -> str | None:
        """The picture, and `repr` below it; None where there are too many tensors to look at."""
        try:
            diagram = self.diagram()
        except AttributeError:  # stand-ins of jax for arrays have no shapes
            return None
        if diagram.n_tensors > _TENSORS:
            return None
        caption = f"<figcaption><code>{escape(repr(self))}</code></figcaption>"
        return f"<figure>{write_svg(diagram)}{caption}</figure>"
