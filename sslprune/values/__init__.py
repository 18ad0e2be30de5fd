"""Values: what passes between the rooms. Nothing here runs a model or reads a file."""
