"""After the plan: errors that travel from block to block, and how factors make up for them (docs/after-the-plan.md)."""
