"""Showing: what a person sees in the terminal."""
