"""Running single decoder blocks: their call arguments, their placement on a device, and the states between blocks."""
