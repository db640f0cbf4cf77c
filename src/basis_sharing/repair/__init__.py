"""Repair of a compressed model: refitting and training that reduce accumulated errors (docs/after-the-plan.md)."""
