"""The modules of a compressed model and the surgery that installs them."""
