"""One decoder block at a time: calling it, placing it, the states between blocks."""
