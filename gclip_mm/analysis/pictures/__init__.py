"""Pictures of runs, drawn with Matplotlib without a display."""
