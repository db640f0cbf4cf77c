"""Pure tensor mathematics: whitening, truncated factorization, least squares. Knows no model."""
