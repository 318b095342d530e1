"""What the monitor and the spike hook read from a step."""
