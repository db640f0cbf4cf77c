"""Tensor mathematics, independent of any model: whitening, truncation, pivoting and least squares."""
