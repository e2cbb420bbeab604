"""Run the notebooks, each in a kernel of its own, and keep what they show.

``python docs/notebooks/run.py`` runs all of them, ``python docs/notebooks/run.py 01 03`` some. A
notebook is written when it has run to its end, and stays as it was when a cell fails.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from rich.console import Console
from rich.progress import Progress

HERE = Path(__file__).parent
SECONDS = 600  # for one cell
# Pictures without a date: the same picture is the same file.
KERNEL = (
    "--IPKernelApp.log_level=40",
    "--InlineBackend.figure_formats={'svg'}",
    "--InlineBackend.print_figure_kwargs={'bbox_inches': 'tight', 'metadata': {'Date': None}}",
)


def chosen(names: list[str]) -> list[Path]:
    """Notebooks whose names begin with one of these, all if there are none."""
    paths = [p for p in sorted(HERE.glob("*.ipynb")) if p.name.startswith(tuple(names) or "")]
    if not paths:
        raise SystemExit(f"no notebook in {HERE.name} begins with {' or '.join(names)}")
    return paths


def executed(notebook: Any, progress: Progress) -> Any:
    """The notebook with the outputs of its cells, and nothing of when and by what they ran."""
    bar = progress.add_task("cells", total=len(notebook.cells))
    client = NotebookClient(
        notebook,
        timeout=SECONDS,
        record_timing=False,
        coalesce_streams=True,  # how output was cut on its way says nothing
        extra_arguments=list(KERNEL),
        resources={"metadata": {"path": str(HERE)}},
        on_cell_complete=lambda cell, cell_index: progress.update(bar, completed=cell_index + 1),
    )
    try:
        client.execute()
    except CellExecutionError as error:
        raise SystemExit(str(error)) from None
    progress.remove_task(bar)
    notebook.metadata.language_info = {"name": "python"}
    return notebook


def replace(path: Path, notebook: Any) -> None:
    """Write a notebook beside the old one and put it in its place."""
    partial = path.with_suffix(".partial")
    nbformat.write(notebook, partial)
    partial.replace(path)


def main() -> None:
    """Run what was asked for, one after the other."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # small work, and the same rounding
    parser.add_argument("names", nargs="*", help="how the names begin, such as 01; all by default")
    paths = chosen(parser.parse_args().names)
    console = Console()
    with Progress(console=console) as progress:
        for path in progress.track(paths, description="notebooks"):
            start = time.perf_counter()
            replace(path, executed(nbformat.read(path, as_version=4), progress))
            console.print(f"{path.name}: {time.perf_counter() - start:.1f} s", highlight=False)


if __name__ == "__main__":
    main()
