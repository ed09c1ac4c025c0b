"""Annotation formats: readers, writers, and recognition of the format."""
