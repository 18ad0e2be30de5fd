"""Every error that a person can cause, as one tree.

    SslpruneError                 one line: where, what came, what was expected, the mend
    ├── RecipeError               a field of the recipe (or of --set)
    ├── CheckpointError           a checkpoint that is missing, broken, or of another model
    ├── DataError                 a dataset that is missing, empty, or of another shape
    ├── TraceError                a model that torch.export cannot capture
    ├── BudgetError               a budget that no removal can reach
    ├── CalibrationError          samples of other inputs, values that are not finite
    ├── TrainingError             a loss that became NaN, a resume that does not fit
    ├── RepackError               a repacked model that is not the masked model
    ├── ExportError               an ONNX file that cannot be written, read or verified
    └── RunError                  a run directory that is incomplete or another recipe's

The command line prints ``str(error)`` and exits with status 1. ``assert`` is for our own invariants only.
"""


class SslpruneError(Exception):
    """A mistake that a person can mend; its text is the one line that they see."""


class RecipeError(SslpruneError):
    """A recipe with an unknown key, a wrong type, or a value out of range."""


class CheckpointError(SslpruneError):
    """A checkpoint that is missing, truncated, pickled code, or of other shapes."""


class DataError(SslpruneError):
    """A dataset that is missing, empty, of another shape, or with labels out of range."""


class TraceError(SslpruneError):
    """A model that ``torch.export`` cannot capture as one graph."""


class BudgetError(SslpruneError):
    """A budget below what removing everything prunable would leave."""


class CalibrationError(SslpruneError):
    """Calibration that cannot be done: too few samples, or of other inputs; values that are not finite."""


class TrainingError(SslpruneError):
    """Training that cannot go on: a loss that is not finite, a resume that does not fit."""


class RepackError(SslpruneError):
    """A repack that could not be done, or whose result differs from the masked model."""


class ExportError(SslpruneError):
    """An ONNX file that could not be written, read, run, or verified."""


class RunError(SslpruneError):
    """A run directory that is incomplete, unreadable, or belongs to another recipe."""


def few(names: list[str], limit: int = 8) -> str:
    """The first ``limit`` names, and how many more there are."""
    shown = ", ".join(printable(name) for name in names[:limit])
    return f"{shown} and {len(names) - limit} more" if len(names) > limit else shown


def printable(text: str) -> str:
    """``text`` in one line, with what cannot be seen in it written as Python does: a newline as \\n."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def first_line(error: BaseException | None) -> str:
    """What an exception says, as one short line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
