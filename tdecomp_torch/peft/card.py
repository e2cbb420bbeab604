"""What the card of a saved adapter says of loading it: PEFT finds the method only if it is told."""

from __future__ import annotations

from pathlib import Path

__all__ = ["tell_import"]

_CARD = "README.md"
_OF_PEFT = "library_name: peft"
_IMPORT = "import tdecomp_torch.peft"
_SAID = f"""\
## Loading

The method of this adapter is not PEFT's own. Import it first, in every process that loads the
adapter, or PEFT says `KeyError: 'TDECOMP_TORCH_PEFT'`:

```python
{_IMPORT}  # the adapters of tdecomp as a method of PEFT
from peft import PeftModel

model = PeftModel.from_pretrained(base_model, "this folder")
```

"""


def tell_import(folder: Path) -> None:
    """Add to the card that PEFT wrote into a folder what to import; once."""
    card = folder / _CARD
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    if _OF_PEFT not in text or _IMPORT in text:
        return
    start = text.find("\n## ") + 1 or len(text)
    before = text[:start] if text[:start].endswith("\n") else f"{text[:start]}\n\n"
    card.write_text(f"{before}{_SAID}{text[start:]}", encoding="utf-8")
