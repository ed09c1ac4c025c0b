"""The plots of a report as geometry; a template draws them."""
