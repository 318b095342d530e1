"""Checkpoints that survive a kill, and resuming from them."""
