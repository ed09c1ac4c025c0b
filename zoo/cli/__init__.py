"""The command line: one file a group of verbs, and nothing computed here."""
