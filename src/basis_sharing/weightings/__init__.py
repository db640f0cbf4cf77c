"""What errors are weighted with: one file per weighting."""
