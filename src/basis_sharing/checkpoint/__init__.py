"""The checkpoint dialect: modules, quantizer, reading and writing."""
