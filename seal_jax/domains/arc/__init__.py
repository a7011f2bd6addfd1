"""ARC (paper section 4.2): from a few pairs of grids, find the rule; the self-edit chooses how to train for it."""
