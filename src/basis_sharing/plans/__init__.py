"""What will be done, as data: which entry every group of projections gets, and what that is expected to cost."""
