"""Comparison of detectors: plan and execute runs, locally or as a SLURM job array, gather and analyse their results."""
