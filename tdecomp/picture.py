"""Pictures of tensor networks as SVG text that notebooks show and files keep."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tdecomp._brief import brief, brief_count
from tdecomp.drawing import Diagram, Drawable, Panel, numbered, write_svg
from tdecomp.errors import ArgumentError
from tdecomp.files.atomic import output_file
from tdecomp.modes import Equation

__all__ = ["Picture", "draw"]

_START = b"<svg"


@dataclass(frozen=True, repr=False)
class Picture:
    """A drawing; notebooks show it.

    Attributes
    ----------
    svg
        The whole picture as text, the content of an ``.svg`` file.
    """

    svg: str

    def __repr__(self) -> str:
        return brief("Picture", brief_count(len(self.svg), "letter"))

    def _repr_svg_(self) -> str:
        return self.svg

    def _repr_html_(self) -> str:
        return self.svg

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the picture to a file, whole or not at all.

        Raises
        ------
        FileError
            The file exists (without `overwrite`, or it is no picture), or cannot be written.
        """
        with output_file(path, ours=_is_picture, overwrite=overwrite) as new:
            new.write_text(self.svg, encoding="utf-8")


def _is_picture(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_START)) == _START


def draw(what: Any, *, sizes: Mapping[str, int] | None = None) -> Picture:
    """Picture of a tensor network: tensors, and a line for every mode and rank, with its size.

    A rank of two tensors is a line between them, one of more tensors a dot. Open modes are lines
    with a free end and a name. Site modes (``layer``, ``proj``, ...) are dashed and end in a
    square: a tensor has a part of its own for each of their weights, and is shared over those that
    it does not carry. A trained tensor is round and full, a frozen one square and dashed.

    Parameters
    ----------
    what
        A format, a `Fit` or `Fits`, a `Plan`, an adapter (`Spec`, `Bound`, or attached to a model),
        or an equation, also as text. Nothing is computed; no number of an array is read.
    sizes
        Sizes of the names of an equation, as far as they are known.

    Raises
    ------
    ArgumentError
        For anything else, and for `sizes` that the equation does not have.

    Examples
    --------
    >>> lotr = draw("out r, layer r s, s in -> layer out in", sizes={"layer": 12, "r": 8})
    >>> lotr.svg.count("<rect"), "layer 12" in lotr.svg, "r 8" in lotr.svg
    (4, True, True)
    """
    if isinstance(what, str | Equation):
        return Picture(write_svg(_of_equation(what, dict(sizes or {}))))
    if sizes is not None:
        raise ArgumentError(f"sizes= is for equations: a {type(what).__name__} has its own")
    if isinstance(what, type) or not isinstance(what, Drawable):
        given = what.__name__ if isinstance(what, type) else type(what).__name__
        raise ArgumentError(
            f"draw takes a format, a fit, a plan, an adapter or an equation, got a {given}"
        )
    return Picture(write_svg(what.diagram()))


def _of_equation(text: str | Equation, sizes: dict[str, int]) -> Diagram:
    equation = Equation.parse(text) if isinstance(text, str) else text
    if unknown := sorted(sizes.keys() - equation.letters.keys()):
        raise ArgumentError(f"sizes names {unknown[0]!r}, which '{equation}' does not have")
    return Diagram(
        (Panel(title="Equation", products=(numbered(equation, sizes),), notes=(str(equation),)),)
    )
