"""Timing of the rules against other implementations, and a model of their cost."""
