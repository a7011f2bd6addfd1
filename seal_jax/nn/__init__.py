"""The decoder, its adapters and the losses: pure functions of arrays."""
