"""Reading, checking and writing of compressed checkpoints."""
