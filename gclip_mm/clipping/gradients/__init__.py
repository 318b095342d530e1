"""What a rule sees of a step: the gradients, their norms, units and shards."""
