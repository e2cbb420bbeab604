"""Theory needs no torch, and the document names every statement."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import theory

MODULES = sorted(m.name for m in pkgutil.iter_modules(theory.__path__))
DOCUMENT = Path(theory.__path__[0]).parent / "docs" / "theory.md"


def test_theory_loads_no_torch():
    imports = "; ".join(f"import theory.{name}" for name in MODULES)
    heavy = "[n for n in ('torch', 'jax', 'matplotlib', 'transformers') if n in sys.modules]"
    code = f"import sys; {imports}; print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_in_the_document():
    text = DOCUMENT.read_text(encoding="utf-8")
    for name in MODULES:
        module = importlib.import_module(f"theory.{name}")
        missing = [n for n in module.__all__ if f"`{n}`" not in text]
        assert f"theory.{name}" in text
        assert not missing, f"{name}: {missing}"
