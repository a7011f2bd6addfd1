"""The method: self-edits, rewards, rounds of the outer loop, and what is built on them."""
