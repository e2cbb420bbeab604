"""Statements about formats, adapters and their ranks, each derived or checked; see docs/theory.md.

sympy and numpy, imported from the repository. Equations are read as data, so a statement holds for
every format and adapter that an equation can say.
"""
