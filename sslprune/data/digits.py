"""The handwritten digits that ship with the package (UCI, see DIGITS.md)."""

from __future__ import annotations

import gzip
from importlib import resources

import numpy as np
import torch

from sslprune.data.images import Images

NUM_TEST = 360


def digits() -> tuple[Images, Images]:
    """The 1,437 training and 360 test digits of 8x8 pixels; the split is the file's order, the test digits last."""
    with resources.files("sslprune.data").joinpath("digits.csv.gz").open("rb") as packed, gzip.open(packed) as text:
        table = np.loadtxt(text, delimiter=",", dtype=np.int64)
    grey = np.round(table[:, :64] * (255 / 16)).astype(np.uint8)  # the file counts ink in 0..16
    pixels = torch.from_numpy(grey).view(-1, 1, 8, 8)
    labels = torch.from_numpy(table[:, 64].copy())
    train = Images(pixels[:-NUM_TEST], labels[:-NUM_TEST], 10, "digits, train")
    return train, Images(pixels[-NUM_TEST:], labels[-NUM_TEST:], 10, "digits, test")
