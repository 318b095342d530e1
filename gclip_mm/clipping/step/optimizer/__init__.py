"""What the engine does to torch's optimizer."""
