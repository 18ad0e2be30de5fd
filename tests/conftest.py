"""Before anything is imported: one thread a process, as several workers of pytest-xdist share the cores."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
