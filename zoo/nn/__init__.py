"""Layers of the detectors: trunks, feature pyramids, heads; and framing of images."""
