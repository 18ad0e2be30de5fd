"""The planned curve: what fraction of the cost may be kept while training goes on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Curve:
    """From ``begin`` to ``end``, fractions of the dense cost, in ``length`` steps: falls early, then flattens out.

    The cubic of Zhu and Gupta 2017, eq. 1.
    """

    begin: float
    end: float
    length: int

    def at(self, step: int) -> float:
        """The fraction that may be kept at ``step``."""
        left = max(0.0, 1 - step / self.length) if self.length else 0.0
        return self.end + max(0.0, self.begin - self.end) * left**3
