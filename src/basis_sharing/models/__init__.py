"""The structure of causal language models: decoder blocks, roles, inputs and sizes, independent of any method."""
