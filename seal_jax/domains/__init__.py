"""The domains: what a task is, what it asks of the model, and when an answer is right."""
