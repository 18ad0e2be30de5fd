"""Samples of a person's own loaders and datasets, by their numbers in the test data."""

from __future__ import annotations

from sslprune.data.batches import Source
from sslprune.data.samples import Encoder
from sslprune.errors import DataError
from sslprune.values.inputs import Inputs, counts_rows, each, num_rows


class NumberedSamples(Encoder):
    """One sample is a number: that of a test sample, from 0, in the order that the loader gives them."""

    def __init__(self, test: Source) -> None:
        self._test = test

    def encode(self, sample: str) -> Inputs:
        """The inputs of that sample, of batch 1; raises DataError for what is no such number."""
        if not sample.isdecimal():
            raise DataError(
                f"{sample}: data.factory returns loaders or datasets; name a sample by its number in the test data, "
                "from 0, or return a Data that has encode"
            )
        wanted, begins = int(sample), 0
        for inputs, _ in self._test:
            if wanted < begins + num_rows(inputs):
                if counts_rows(inputs):
                    raise DataError(f"{sample}: inputs of this data count each other's rows, and none stands alone")
                return _row(inputs, wanted - begins)
            begins += num_rows(inputs)
        raise DataError(f"{sample}: the test data have {begins:,} samples, from 0 to {begins - 1:,}")


def _row(inputs: Inputs, number: int) -> Inputs:
    """One row of a batch, as a batch of one."""
    rows = num_rows(inputs)
    return each(inputs, lambda v: v[number : number + 1].clone() if v.dim() and len(v) == rows else v.clone())
