"""The machine and the versions that figures were measured with."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path


def environment() -> dict[str, str | int]:
    """The machine and the versions that the figures were measured with."""
    packages = ("sslprune", "torch", "numpy", "onnx", "onnxruntime", "onnxscript")
    return {
        "python": platform.python_version(),
        **{package: _version(package) for package in packages},
        "system": platform.platform(),
        "processor": _processor(),
        "vnni": {True: "yes", False: "no", None: "not known"}[has_vnni()],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        own = sys.modules["sslprune"].__version__  # run from a checkout
        return str(own) if package == "sslprune" else "not installed"


def has_vnni() -> bool | None:
    """Whether this processor multiplies 8-bit integers four at a time (VNNI, or Arm's dot product); None: not known."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    flags = next((set(line.split()) for line in lines if line.startswith(("flags", "Features"))), None)
    return None if flags is None else bool(flags & {"avx512_vnni", "avx_vnni", "asimddp", "i8mm"})


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
