"""Error against stored numbers for every format, from a few reads of the data."""
