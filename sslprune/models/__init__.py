"""Models: built from a factory, and checkpoints as they are found in the wild."""
