"""Serving of compressed models in other engines."""
