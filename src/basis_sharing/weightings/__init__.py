"""Weightings of errors, one module each; all modules of this folder are registered automatically."""
