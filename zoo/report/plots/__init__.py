"""Plots of a report as SVG geometry, drawn by a template."""
