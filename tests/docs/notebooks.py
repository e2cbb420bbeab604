"""Notebooks run cell by cell in this process, beside what their files say they show."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import re
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

FOLDER = Path(__file__).parents[2] / "docs" / "notebooks"
ANSWER = re.compile(r"# Exercise (\d+): your answer\n")
SOLUTION = re.compile(
    r"<details><summary>Solution (\d+)</summary>\n.*?```python\n(.*?)```.*?</details>", re.S
)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


@dataclass(frozen=True)
class Shown:
    """What a cell shows: text, and how many pictures."""

    text: str
    n_pictures: int


class Session:
    """One namespace, as a kernel has it, in the folder of the notebooks or in the place of it."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self.folder = folder
        self.names: dict[str, Any] = {"__name__": "__main__"}

    def run(self, source: str) -> Shown:
        """Run the source of a cell."""
        tree = ast.parse(source)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        with (
            _as_in_a_kernel(self.folder) as pictures,
            contextlib.redirect_stdout(io.StringIO()) as printed,
        ):
            exec(compile(tree, "cell", "exec"), self.names)
            if last is not None:
                value = eval(compile(ast.Expression(last.value), "cell", "eval"), self.names)
                if hasattr(value, "_repr_svg_"):
                    pictures.append(value)
                elif value is not None:
                    print(repr(value))
        return Shown(printed.getvalue(), len(pictures))


@contextlib.contextmanager
def _as_in_a_kernel(folder: Path):
    """The folder, the modules and the style; pictures are drawn, and listed in their order."""
    pictures: list[Any] = []

    def show() -> None:
        for number in plt.get_fignums():
            plt.figure(number).canvas.draw()
            pictures.append(number)
        plt.close("all")

    shows, plt.show = plt.show, show
    sys.path.insert(0, str(FOLDER))
    try:
        with contextlib.chdir(folder), matplotlib.rc_context(fname=FOLDER / "matplotlibrc"):
            yield pictures
    finally:
        plt.show = shows
        sys.path.remove(str(FOLDER))


class Notebook:
    """A notebook's cells, what they show when run, and its exercises."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        self.code = [c for c in self.cells if c["cell_type"] == "code"]
        self.sources = ["".join(c["source"]) for c in self.code]
        prose = "\n".join("".join(c["source"]) for c in self.cells if c["cell_type"] == "markdown")
        self.solutions = {int(k): source for k, source in SOLUTION.findall(prose)}

    @cached_property
    def committed(self) -> list[Shown]:
        """What the file says its cells show."""
        return [_committed(cell) for cell in self.code]

    def run(self, session: Session) -> list[Shown]:
        """What the cells show when run in order."""
        return [session.run(source) for source in self.sources]

    @property
    def exercises(self) -> list[tuple[int, int]]:
        """Number of each exercise and the place of its answer cell; the check is the next one."""
        starts = [(ANSWER.match(source), k) for k, source in enumerate(self.sources)]
        return [(int(start[1]), k) for start, k in starts if start]

    def answered(self, session: Session, place: int, answer: str) -> str:
        """What the check says of another answer in the place of the one at `place`."""
        session.run(answer)
        return session.run(self.sources[place + 1]).text


def _committed(cell: dict[str, Any]) -> Shown:
    """What the outputs of a cell show; an error shows as its name."""
    text, n_pictures = "", 0
    for output in cell["outputs"]:
        data = output.get("data", {})
        if "image/svg+xml" in data:
            n_pictures += 1
        else:
            told = output.get("text") or data.get("text/plain") or output.get("ename", "")
            text += "".join(told)
    return Shown(text, n_pictures)


def same_text(a: str, b: str) -> bool:
    """Whether two texts agree in words, whole numbers, and decimals up to their last digit."""
    return same_form(a, b) and all(map(_same_number, NUMBER.findall(a), NUMBER.findall(b)))


def same_form(a: str, b: str) -> bool:
    """Whether two texts are the same but for numbers and spaces."""
    return "".join(NUMBER.sub("#", a).split()) == "".join(NUMBER.sub("#", b).split())


def _same_number(a: str, b: str) -> bool:
    unit = max(_last_place(a), _last_place(b))
    return a == b or (unit is not None and abs(float(a) - float(b)) <= 1.01 * unit)


def _last_place(number: str) -> float:
    """Worth of the last digit of a decimal; 0 for a whole number, which has nothing to round."""
    digits, _, exponent = number.partition("e")
    decimals = len(digits.partition(".")[2])
    return 10.0 ** (int(exponent or 0) - decimals) if decimals or exponent else 0.0
