"""A comparison: plan the runs, start them, gather what they leave, analyse it."""
