"""Analysis: which dimensions belong together, and where exact zeros travel."""
