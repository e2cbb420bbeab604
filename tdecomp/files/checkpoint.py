"""The one door to models on disk: open them, pair them, hash them, write one like another."""

from .hashing import fingerprint, fingerprints
from .opening import Checkpoint, check_unchanged, open_checkpoint
from .pair import Pair
from .pairing import pair
from .rewriting import Update, write_model

__all__ = [
    "Checkpoint",
    "Pair",
    "Update",
    "check_unchanged",
    "fingerprint",
    "fingerprints",
    "open_checkpoint",
    "pair",
    "write_model",
]
