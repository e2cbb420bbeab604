"""A page for every row of the catalogue of adapters, and a table that sorts and filters."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

import tdecomp as td
from tdecomp.adapters import CATALOGUE, Grid, Spec, bind
from theory.counts import trainable_count
from theory.exports import lora_rank

_GRID = Grid.full((768, 768), heads=12, layer=12, proj=3)
_RANK = 8
_NOTE = f"{_GRID.n_sites} weights of 768 x 768 (layer 12, proj 3), every open rank {_RANK}"

_HEAD = """# Catalogue

The {n} adapters that `tdecomp_torch.attach` knows by name. `site` is one weight; a factor is shared
over every site mode that it does not carry; `*` marks a frozen factor. Numbers trained are those on
{note}. With JavaScript the table sorts by its headings and filters by what is typed; without, it is
a table.

"""


def catalogue_pages() -> Iterator[tuple[str, str]]:
    """File names and their text."""
    yield "catalogue/index.md", _index()
    for spec in CATALOGUE.values():
        yield f"catalogue/{spec.name}.md", _page(spec)


def _index() -> str:
    rows = "".join(
        f'<tr><td><a href="{escape(spec.name)}.html">{escape(spec.name)}</a></td>'
        f"<td><code>{escape(_equation(spec))}</code></td>"
        f'<td class="number">{_trained(spec):,}</td><td>{escape(str(lora_rank(spec)))}</td>'
        f"<td>{escape(spec.source)}</td></tr>"
        for spec in CATALOGUE.values()
    )
    headings = ("name", "ΔW of a site", "numbers trained", "rank of its LoRA", "source")
    head = "".join(f'<th scope="col">{name}</th>' for name in headings)
    table = (
        f'<div class="wide"><table class="sortable"><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )
    names = "\n".join(CATALOGUE)
    return (
        _HEAD.format(n=len(CATALOGUE), note=_NOTE)
        + f"```{{raw}} html\n{table}\n```\n\n```{{toctree}}\n:hidden:\n\n{names}\n```\n"
    )


def _page(spec: Spec) -> str:
    picture = td.draw(spec).svg
    rows = [
        ("Equation", f"`{spec.equation}`"),
        ("Adapted weight", spec.base_rule.says),
        ("Scale", f"`{spec.scale}`, alpha `{spec.alpha}`"),
        *(("Size", f"`{name} = {text}`") for name, text in spec.where),
        *(("Norm 1", f"`{f.name}` along `{' '.join(f.unit)}`") for f in spec.factors if f.unit),
        ("Numbers trained", f"`{trainable_count(spec, resolve=True)}`"),
        ("On an example", f"{_trained(spec):,} trained: {_NOTE}"),
        ("Export", _export(spec)),
        ("Source", spec.source or "this project"),
    ]
    if spec.wrap:
        rows.insert(2, ("Norm", f"of {spec.wrap}, trained apart"))
    starts = [
        f"| `{f.name}` | {'trained' if f.trainable else 'frozen'} | `{' '.join(f.modes) or '1'}` |"
        f" `{f.init}` |"
        for f in spec.factors
    ]
    table = "\n".join(f"| {name} | {text.replace('|', chr(92) + '|')} |" for name, text in rows)
    zero = "is" if spec.starts_at_zero else "need not be"
    return (
        f"# {spec.name}\n\n```{{raw}} html\n{picture}\n```\n\n"
        f"| | |\n| --- | --- |\n{table}\n\n"
        f"## Starts\n\n| factor | | axes | starts as |\n| --- | --- | --- | --- |\n"
        + "\n".join(starts)
        + f"\n\nAt the start the adapted weight {zero} the base weight.\n\n"
        f"```python\nadapter = tdecomp_torch.attach(model, {spec.name!r}{_rank(spec)})\n```\n"
    )


def _equation(spec: Spec) -> str:
    return spec.equation.partition(" -> ")[0]


def _open_ranks(spec: Spec) -> bool:
    return bool(spec.open_ranks(tuple(mode for mode, _ in _GRID.modes)))


def _rank(spec: Spec) -> str:
    return f", rank={_RANK}" if _open_ranks(spec) else ""


def _trained(spec: Spec) -> int:
    return bind(spec, _GRID, _RANK if _open_ranks(spec) else None).n_trainable


def _export(spec: Spec) -> str:
    if spec.wrap:
        return "LoRA pairs as wide as the weight (a norm is no pair); or merge it"
    return f"LoRA pairs of rank `{lora_rank(spec)}` or less, exactly, for PEFT and vLLM"
