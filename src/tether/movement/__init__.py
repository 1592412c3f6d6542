"""Which weights may move, and how fast."""
