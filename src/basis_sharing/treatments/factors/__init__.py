"""Bases and coefficients for a plan."""
