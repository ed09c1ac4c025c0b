"""What a detector costs: latency, FLOPs, memory, energy, and the hardware it was measured on."""
