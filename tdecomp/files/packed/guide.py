"""The table of the guide, "what is read, what is refused", made from the table of layouts."""

from __future__ import annotations

from .find import LAYOUTS

__all__ = ["layouts_table"]

_HEAD = ("how the weights are stored", "tensors in the file", "base", "tuned", "LoRA source")
_PLAIN = (
    ("plain floats", "any name F64, F32, F16 or BF16", "read, `apply` writes it", "read", "yes"),
    ("fp8 cast without scales", "any name F8_E4M3 or F8_E5M2, nothing that looks like a scale"),
)
_READ = ("read, `apply` with `--dtype`", "read", "yes")
_OTHER_FILES = (
    ("pickle (`.bin`, `.pt`, `.pth`, `.ckpt`)", "not opened: it can run code"),
    ("GGUF, ONNX, HDF5, msgpack", "not opened: convert it to safetensors"),
)


def layouts_table() -> str:
    """Markdown of the layouts: which are read as a base or a tuned model, and which are refused.

    "LoRA source": a LoRA can be made of such a pair (`decompose --lora`, `export`).

    Examples
    --------
    >>> print(layouts_table().splitlines()[2])
    | plain floats | any name F64, F32, F16 or BF16 | read, `apply` writes it | read | yes |
    """
    rows = [_HEAD, ("---",) * len(_HEAD)]
    rows += [(*row, *_READ)[: len(_HEAD)] for row in _PLAIN]
    told: set[str] = set()
    for layout in sorted(LAYOUTS, key=lambda layout: layout.open is None):  # what is read first
        if layout.name not in told:
            told.add(layout.name)
            verdict = _READ if layout.open else ("refused", "refused", "no")
            rows.append((layout.name, layout.stored, *verdict))
    rows += [(*row, "refused", "refused", "no") for row in _OTHER_FILES]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
