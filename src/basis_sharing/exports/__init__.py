"""Export of compressed models for other tools."""
