"""What a causal language model has: decoder blocks, roles, inputs, sizes. Knows no method."""
