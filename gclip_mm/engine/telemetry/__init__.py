"""Measurements of the steps for the monitor hook and the spike hook."""
