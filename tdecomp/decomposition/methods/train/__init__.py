"""Tensor trains: TT-SVD, MPO, rounding, sweeps."""
