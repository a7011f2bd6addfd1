"""What a run would do, load and need."""
