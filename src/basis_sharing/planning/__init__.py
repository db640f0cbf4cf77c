"""From candidates and their costs to a plan."""
