"""sslprune makes trained PyTorch models smaller and really faster, by structured sparsity that is proven exact.

The public functions load on first use, so that the command line answers at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "trace": "capture.trace",
    "Program": "capture.program",
    "find_axes": "kinds.find",
    "repack": "removal.remove",
    "Cost": "cost.counts",
    "zero_groups": "values.axes",
    "Axis": "values.axes",
    "Member": "values.axes",
    "calibrate": "calibration.calibrate",
    "factor": "calibration.factor",
    "GroupLasso": "train.lasso",
    "Shrinker": "train.shrink",
    "shrink": "train.shrink",
    "Sparsity": "train.sparsity",
    "export_decoder": "export.decoder",
    "export_deci": "export.deci",
    "export_huggingface": "export.huggingface",
    "export_onnx": "export.onnx",
    "load": "export.program",
    "apply_plan": "removal.plan",
    "make_plan": "removal.plan",
    "gate_": "removal.gates",
    "gates_for": "removal.gates",
    "Metric": "values.metrics",
    "SslpruneError": "errors",
    "Task": "values.tasks",
}

__all__ = [
    "Axis",
    "Cost",
    "GroupLasso",
    "Member",
    "Metric",
    "Program",
    "Shrinker",
    "Sparsity",
    "SslpruneError",
    "Task",
    "__version__",
    "apply_plan",
    "calibrate",
    "export_deci",
    "export_decoder",
    "export_huggingface",
    "export_onnx",
    "factor",
    "find_axes",
    "gate_",
    "gates_for",
    "load",
    "make_plan",
    "repack",
    "shrink",
    "trace",
    "zero_groups",
]

if TYPE_CHECKING:
    from sslprune.calibration.calibrate import calibrate
    from sslprune.calibration.factor import factor
    from sslprune.capture.program import Program
    from sslprune.capture.trace import trace
    from sslprune.cost.counts import Cost
    from sslprune.errors import SslpruneError
    from sslprune.export.deci import export_deci
    from sslprune.export.decoder import export_decoder
    from sslprune.export.huggingface import export_huggingface
    from sslprune.export.onnx import export_onnx
    from sslprune.export.program import load
    from sslprune.kinds.find import find_axes
    from sslprune.removal.gates import gate_, gates_for
    from sslprune.removal.plan import apply_plan, make_plan
    from sslprune.removal.remove import repack
    from sslprune.train.lasso import GroupLasso
    from sslprune.train.shrink import Shrinker, shrink
    from sslprune.train.sparsity import Sparsity
    from sslprune.values.axes import Axis, Member, zero_groups
    from sslprune.values.metrics import Metric
    from sslprune.values.tasks import Task


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"sslprune.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'sslprune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
