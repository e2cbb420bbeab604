"""Any einsum: trees in closed form, alternating least squares, Levenberg-Marquardt."""
