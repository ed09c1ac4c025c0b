"""The test images of a report: chosen, kept, and drawn with their boxes."""
