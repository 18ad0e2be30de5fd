"""Runs: a directory, and the stages that read and write it."""
