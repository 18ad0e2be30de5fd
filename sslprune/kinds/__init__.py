"""Kinds: the structures that may be removed, one file each."""
