"""Seeing what reaches the weights of a model on a few batches, and leaving the model as it was."""

from tdecomp_torch.capture.capture import capture as capture

__all__ = ["capture"]
