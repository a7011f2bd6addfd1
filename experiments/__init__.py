"""One file an experiment: a typed config, its presets, and a `main` that reads from top to bottom."""
