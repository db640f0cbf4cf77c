"""Ways to make projections cheaper: one folder per treatment, with the same file names in each."""
