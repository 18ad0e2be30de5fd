"""sslprune makes trained PyTorch models smaller and really faster, by structured sparsity that is proven exact.

The public functions load on first use, so that the command line answers at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PLACES = {
    "trace": "graph.trace",
    "Program": "graph.program",
    "find_axes": "graph.find",
    "repack": "graph.repack",
    "Cost": "graph.cost",
    "zero_groups": "axes",
    "Axis": "axes",
    "Member": "axes",
    "GroupLasso": "train.lasso",
    "Shrinker": "train.shrink",
    "shrink": "train.shrink",
    "Sparsity": "train.sparsity",
    "export_onnx": "export",
    "load": "plan",
    "apply_plan": "plan",
    "make_plan": "plan",
    "SslpruneError": "errors",
}

__all__ = [
    "Axis",
    "Cost",
    "GroupLasso",
    "Member",
    "Program",
    "Shrinker",
    "Sparsity",
    "SslpruneError",
    "__version__",
    "apply_plan",
    "export_onnx",
    "find_axes",
    "load",
    "make_plan",
    "repack",
    "shrink",
    "trace",
    "zero_groups",
]

if TYPE_CHECKING:
    from sslprune.axes import Axis, Member, zero_groups
    from sslprune.errors import SslpruneError
    from sslprune.export import export_onnx
    from sslprune.graph.cost import Cost
    from sslprune.graph.find import find_axes
    from sslprune.graph.program import Program
    from sslprune.graph.repack import repack
    from sslprune.graph.trace import trace
    from sslprune.plan import apply_plan, load, make_plan
    from sslprune.train.lasso import GroupLasso
    from sslprune.train.shrink import Shrinker, shrink
    from sslprune.train.sparsity import Sparsity


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(f"sslprune.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'sslprune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
