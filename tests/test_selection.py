"""Selection: one polarity, an order, and a file that is read back to the same."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import sslprune
from sslprune.errors import SslpruneError
from sslprune.values.axes import Axis
from sslprune.values.selection import Selection

AXES = [Axis(name, "neurons", size, True, ()) for name, size in (("a", 3), ("b", 1), ("c", 5))]
masks = st.tuples(*(st.lists(st.booleans(), min_size=a.size, max_size=a.size) for a in AXES))


def selection(*given: list[bool]) -> Selection:
    return Selection.of(AXES, given)


@given(masks, masks)
def test_the_order_is_that_of_sets(one, other):
    a, b = selection(*one), selection(*other)
    both = a | b
    assert a <= both and b <= both and Selection.none(AXES) <= a
    assert (a <= b) == (both == b)
    assert (a - b) | b == both and not (a - a)
    assert bool(a) == any(any(part) for part in one)


@given(masks)
def test_what_is_written_is_read_back(one):
    a = selection(*one)
    assert Selection.from_json(a.to_json(), AXES) == a
    assert {name: entry["gone"] for name, entry in json.loads(a.to_json())["axes"].items()} == {
        axis.name: [i for i, gone in enumerate(part) if gone] for axis, part in zip(AXES, one, strict=True)
    }


def test_it_is_frozen_and_more_goes_in_a_new_one():
    a = selection([True, False, False], [False], [False] * 5)
    b = a.plus({2: np.array([1, 4])})
    assert a["c"].sum() == 0 and b["c"].tolist() == [False, True, False, False, True]
    assert (b.left("a"), b.left(AXES[1]), b.left(2)) == (2, 1, 3)
    with pytest.raises(ValueError, match="read-only"):
        b["c"][0] = True
    assert str(b) == "a [neurons] 1 of 3, c [neurons] 2 of 5" and str(Selection.none(AXES)) == "nothing goes"


def test_other_axes_are_told_by_name():
    a = selection([True, False, False], [False], [True] * 5)
    assert a.over([AXES[2], Axis("d", "neurons", 2, True, ())]).masks[0].all()
    with pytest.raises(ValueError, match="different axes"):
        _ = a <= Selection.none(AXES[:1])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not a selection"),
        ('{"axes": 3}', "not a selection"),
        ('{"axes": {"a": {"size": 3, "gone": [0]}}}', "axis b has none groups there and 1 in the model"),
        (selection([False] * 3, [False], [False] * 5).to_json().replace('"size": 5', '"size": 6'), "axis c has 6"),
        (selection([False] * 3, [False], [True] * 5).to_json().replace("4]", "9]"), "axis c"),
    ],
)
def test_a_file_of_something_else_is_refused(text, said):
    with pytest.raises(SslpruneError, match=said):
        Selection.from_json(text, AXES, "selection.json")


def test_zeros_are_found_in_a_model():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    program = sslprune.trace(model, (torch.zeros(2, 3),))
    axes = [axis for axis in sslprune.find_axes(program) if axis.exact]
    sslprune.zero_groups(model, axes[0], [1, 3])
    found = Selection.zeros(model, axes)
    assert found[axes[0]].tolist() == [False, True, False, True]
