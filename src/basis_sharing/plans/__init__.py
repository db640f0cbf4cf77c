"""Plans as data: the entry of every group of projections, and the expected loss."""
