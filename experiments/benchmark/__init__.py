"""How fast the inner loop is, how far from what the device can do, and from PEFT on the same device."""
