"""Compressed models in other people's engines and formats."""
