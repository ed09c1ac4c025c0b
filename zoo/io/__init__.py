"""Files written atomically, and JSON with errors that name file and place."""
