"""The results of the verbs as typed JSON files."""
