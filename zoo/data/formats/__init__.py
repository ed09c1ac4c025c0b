"""Readers and writers of annotation formats; recognising a format."""
