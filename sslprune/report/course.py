"""How a run went: what a report says of it beside its figures."""

from __future__ import annotations

from datetime import date

from sslprune.values.measure import Record


class Course(Record):
    """What was made smaller, when, for how long, and on what.

    ``day`` is of the export; ``seconds`` are of training, over all its epochs, those of the larger points of a sweep
    included that it went on from; ``data`` says where samples come from. ``train_batches`` are those of an epoch, of
    ``batch_size`` samples; ``test_samples`` those that metrics are over. ``recipe`` is the recipe's text.
    """

    model: str
    task: str
    day: date
    seconds: float
    data: str
    train_batches: int
    batch_size: int
    test_samples: int
    recipe: str
