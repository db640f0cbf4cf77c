"""What every result says as tables: one file per subject, nothing about how they are drawn."""
