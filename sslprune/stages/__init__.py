"""What each command does: a module a stage, all of which read and write one run directory."""
