"""Calibration: token windows from text, and the second moments and other statistics measured on them."""
