"""Tensor functions: boxes, anchors, matching, sampling, losses, pooling, NMS; and collective operations."""
