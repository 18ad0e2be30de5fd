"""The analysis of a program, and the kinds of structures that it finds."""

from __future__ import annotations

import gc
import weakref

import torch
from torch import nn

import sslprune
from sslprune.kinds.find import analysis_of


def test_a_program_has_one_analysis_which_goes_with_it() -> None:
    program = sslprune.trace(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), (torch.randn(2, 3),))
    axes = sslprune.find_axes(program)
    analysis = weakref.ref(analysis_of(program))
    assert analysis_of(program) is analysis() and sslprune.find_axes(program) == axes
    del program
    gc.collect()
    assert analysis() is None and [axis.size for axis in axes if axis.exact] == [4]
