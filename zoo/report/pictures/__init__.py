"""Test images of a report: selection, storage in `examples.json`, and drawing with boxes."""
