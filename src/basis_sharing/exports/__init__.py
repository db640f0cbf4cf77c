"""Compressed models as files for other tools."""
