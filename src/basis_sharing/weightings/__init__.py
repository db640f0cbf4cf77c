"""What errors are weighted with: one file per weighting, found by looking into this folder."""
