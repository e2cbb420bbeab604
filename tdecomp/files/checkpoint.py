"""Models on disk: open them, pair them, fingerprint them, write one like another.

The parts live in `opening`, `pairing` and `rewriting`; this is the one door to them.
"""

from .opening import Checkpoint, check_unchanged, fingerprint, open_checkpoint
from .pair import Pair
from .pairing import pair
from .rewriting import Update, write_model

__all__ = [
    "Checkpoint",
    "Pair",
    "Update",
    "check_unchanged",
    "fingerprint",
    "open_checkpoint",
    "pair",
    "write_model",
]
