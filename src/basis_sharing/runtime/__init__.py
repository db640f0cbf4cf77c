"""What a compressed model needs to run: the format, the modules and the quantizer that travel with every checkpoint."""
