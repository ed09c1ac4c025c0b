"""What is wrong with a data set, its cleaned copy, and its statistics."""
