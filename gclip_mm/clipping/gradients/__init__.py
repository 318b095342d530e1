"""The gradients of a step: views, norms, units and shards."""
