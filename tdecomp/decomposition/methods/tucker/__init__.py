"""A core and bases: HOSVD, HOOI, Tucker2, metrics, masks."""
