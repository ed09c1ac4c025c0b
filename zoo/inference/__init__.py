"""Prediction on image files without annotations."""
