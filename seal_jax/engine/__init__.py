"""Many adapters at once: token batches, the inner loop, the sampler, and what they cost."""
