"""Make language models smaller by sharing basis vectors between layers."""

__version__ = "0.1.0"
