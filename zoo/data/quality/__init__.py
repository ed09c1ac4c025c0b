"""Data quality: check a data set for errors (doctor), write a cleaned copy, compute statistics."""
