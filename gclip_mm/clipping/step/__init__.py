"""One step of an optimizer: collect, measure, decide, apply, record."""
