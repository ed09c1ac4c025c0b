"""Detections of image files, without annotations."""
