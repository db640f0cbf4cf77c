"""The verbs of the package, one module per verb, named as on the command line."""
