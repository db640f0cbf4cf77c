"""Which projections share a basis, and at which rank."""
