"""From text to second moments."""
