"""The command line: one file per group of verbs; the work itself is done by the other packages."""
