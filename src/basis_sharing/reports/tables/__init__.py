"""Results as tables, one module per subject, independent of how they are rendered."""
