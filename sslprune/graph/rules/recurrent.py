"""Recurrent layers: a hidden unit is one group with all its gates (Intrinsic Sparse Structures, Wen et al. 2018)."""

from __future__ import annotations

from sslprune.graph.inference import Rule

RULES: dict[str, Rule] = {}
