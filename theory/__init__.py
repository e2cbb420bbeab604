"""Symbolic derivations with sympy; equations are read as data. Imported from the repository."""
