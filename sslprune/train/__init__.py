"""Sparse training: the group lasso, the budget that steers it, and the loop around both."""

from sslprune.train.lasso import GroupLasso

__all__ = ["GroupLasso"]
