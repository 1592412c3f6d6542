"""The one training loop, its settings, log and checkpoints."""
