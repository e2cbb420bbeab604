"""Adapters in files: their own, and LoRA folders."""
