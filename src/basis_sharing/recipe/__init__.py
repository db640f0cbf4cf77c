"""The settings of the verbs, each declared once, for YAML, Python and the command line."""
