"""Cost of a detector: latency, FLOPs, memory, energy, and the hardware that it was measured on."""
