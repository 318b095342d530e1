"""What the tools in ``tools/analysis`` do, for those who want it without the command line."""
