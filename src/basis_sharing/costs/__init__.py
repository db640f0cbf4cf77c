"""Costs of options, one module per currency; all modules of this folder are registered automatically."""
