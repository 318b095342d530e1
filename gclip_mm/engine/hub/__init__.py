"""What reaches MMEngine's message hub."""
