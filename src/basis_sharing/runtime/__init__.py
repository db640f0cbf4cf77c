"""The runtime of compressed models: the format, modules and quantizer that are copied into every checkpoint."""
