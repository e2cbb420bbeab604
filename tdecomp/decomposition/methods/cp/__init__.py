"""Sums of rank-one tensors: alternating least squares on a compressed core."""
