"""What is measured: times and their ratios, as values that print as JSON. Units are in the names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from sslprune.errors import RunError
from sslprune.files import write_text

SCHEMA: Literal[1] = 1


class Record(BaseModel):
    """Prints as JSON and reads itself back."""

    # keys that a later version of the same schema added are passed over
    model_config = ConfigDict(frozen=True, extra="ignore", validate_by_name=True, serialize_by_alias=True)

    def save(self, path: Path) -> Path:
        return write_text(path, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what ``save`` wrote; raises RunError, naming the field, for anything else."""
        try:
            text = path.read_text(encoding="utf-8")
            newer = _schema_of(text)
            if newer is not None and newer > SCHEMA:
                raise RunError(
                    f"{path}: schema {newer}, written by a newer sslprune; this one reads schema {SCHEMA}: upgrade it"
                )
            return cls.model_validate_json(text)
        except (OSError, UnicodeDecodeError) as error:
            raise RunError(f"{path}: cannot be read: {error}") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise RunError(
                f"{path}: not what this version of sslprune (schema {SCHEMA}) writes: {where}: {first['msg']}"
            ) from error


def _schema_of(text: str) -> int | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    version = value.get("schema") if isinstance(value, dict) else None
    return version if isinstance(version, int) else None


class Absent(Record):
    """A device that is not there, or that this build of ``runtime`` cannot use: said rather than left out."""

    device: str
    absent: Literal[True] = True
    runtime: str | None = None
    reason: str | None = None


class Latency(Record):
    """One model in one setting. ``threads`` are those of the runtime on the CPU."""

    device: str
    runtime: str
    batch_size: int
    threads: int
    median_ms: float
    p95_ms: float
    repetitions: int
    samples_per_second: float | None = None
    length: int | None = None  # of the sequences, where the model takes any


class Speedup(Record):
    """``ratio``: the median of the paired dense / repacked ratios; ``low`` to ``high`` its 95 % bootstrap interval.

    ``realised``: the share of the theoretical gain, ``ratio`` over the ratio of MACs, where both models have MACs.
    """

    device: str
    runtime: str
    batch_size: int
    threads: int
    ratio: float
    low: float
    high: float
    realised: float | None = None
    length: int | None = None

    @property
    def clear(self) -> bool:
        """Whether there is a measurable difference: 1 lies outside the interval."""
        return not self.low <= 1 <= self.high


class OperatorTime(Record):
    """One kind of operator in one run of a model: how many of it there are, and the milliseconds they take together."""

    operator: str
    calls: int
    ms: float


class Profile(Record):
    """Where one model's time goes in ONNX Runtime on the CPU."""

    model: str
    batch_size: int
    threads: int
    operators: list[OperatorTime]
