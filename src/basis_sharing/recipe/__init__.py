"""What is asked: settings in parts, each declared once, flat in YAML, in Python and on the command line."""
