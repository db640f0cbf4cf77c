"""Benchmarks of speed and memory of several models on one machine."""
