"""Atomic file writing, and JSON decoding with errors that name file and place."""
