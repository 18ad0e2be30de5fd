"""Choosing: which groups go."""
