"""What will be done, as data."""
