"""Whole jobs that run models, from files to files, as `tdecomp.jobs` has them without torch."""
