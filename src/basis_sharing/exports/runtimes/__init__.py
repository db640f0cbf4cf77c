"""Exports through a traced graph: tracing, the comparison in the runtime, and the file that says what was found."""
