"""Ways to make projections cheaper: one folder per treatment, with the same files in each."""
