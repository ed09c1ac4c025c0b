"""Building a Trainer: configuration, plugins, checkpoints."""
