"""Treatments: ways to make projections cheaper, one package each."""
