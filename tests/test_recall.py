"""A teacher is asked once about each sample that comes again as it was."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sslprune.train import recall
from sslprune.train.recall import Recall, keys_of
from sslprune.values.carry import carrying


class Teacher:
    """The sum of the words that are read, twice over in a structure; counts the samples that it is asked about."""

    def __init__(self) -> None:
        self.samples = 0

    def __call__(self, ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Any]:
        self.samples += len(ids)
        total = (ids * (1 if attention_mask is None else attention_mask)).sum(1, keepdim=True).float()
        return {"logits": torch.cat([total, -total], 1), "pair": [total[:, 0]]}


def words(texts: list[list[int]], width: int) -> dict[str, Tensor]:
    """``texts`` with 9 as padding, which a mask leaves out."""
    ids = torch.tensor([text + [9] * (width - len(text)) for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in texts])
    return {"ids": ids, "attention_mask": mask}


def test_what_was_said_is_said_again_whatever_the_padding_and_the_order() -> None:
    teacher, memory = Teacher(), Recall(100)
    first = memory(teacher, words([[1, 2], [3], [4, 5, 6]], 3))
    assert teacher.samples == 3
    again = memory(teacher, words([[4, 5, 6], [7], [1, 2]], 5))
    assert teacher.samples == 4  # 7 alone is new
    assert again["logits"].tolist() == [[15.0, -15.0], [7.0, -7.0], [3.0, -3.0]]
    assert again["pair"][0].tolist() == [15.0, 7.0, 3.0] and first["pair"][0].tolist() == [3.0, 3.0, 15.0]


def test_samples_are_told_apart_by_all_that_is_read() -> None:
    one, other = words([[1, 2]], 4), words([[1, 2, 9]], 4)  # a 9 that is read, and one that is not
    assert keys_of(one) != keys_of(other)
    assert keys_of((torch.tensor([[0.5]]),)) != keys_of((torch.tensor([[0.25]]),))
    assert keys_of((torch.ones(2, 3, dtype=torch.bfloat16), torch.tensor([True, False])))[0] != 0
    assert keys_of((torch.zeros(2), torch.zeros(3))) == []  # rows of their own
    assert keys_of((torch.zeros(2, 2**16),)) == []


def test_augmented_samples_are_not_kept() -> None:
    teacher, memory = Teacher(), Recall(4)
    for batch in range(6):
        said = memory(teacher, (torch.rand(3, 5),))
        assert said["logits"].shape == (3, 2) and memory.over == (batch >= 4)
    assert teacher.samples == 18 and memory.answers is None and not memory.rows


@pytest.mark.parametrize(
    "teacher",
    [
        lambda ids: torch.zeros(len(ids), ids.shape[1], 2),  # one answer a word: by the second batch they differ
        lambda ids: torch.zeros(()),
        lambda ids: ids.float() @ ids.float().T,
        lambda ids: {"logits": torch.zeros(len(ids), 2), "loss": None},
        lambda ids: [torch.zeros(len(ids)), torch.zeros(len(ids), dtype=torch.int64)],
        lambda ids: torch.zeros(len(ids), 2**25),
    ],
    ids=["words", "number", "similarities", "none", "types", "large"],
)
def test_outputs_without_a_row_for_each_sample_are_asked_for_anew(teacher: Any) -> None:
    memory = Recall(100)
    for width in (3, 4):
        inputs = (torch.full((1, width), width),)
        said, expected = memory(teacher, inputs), teacher(*inputs)
        assert type(said) is type(expected)
    assert memory.over


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recall, "MOST_BYTES", 5 * 12)  # an answer has three numbers
    teacher, memory = Teacher(), Recall(100)
    for start in (0, 3, 0):
        numbers = torch.arange(start, start + 3)
        assert memory(teacher, (numbers[:, None],))["pair"][0].tolist() == numbers.tolist()
    assert memory.over and memory.answers is None


def test_a_state_goes_on_and_memory_that_is_over_stays_so() -> None:
    teacher, memory = Teacher(), Recall(100)
    said = memory(teacher, words([[1, 2], [3], [4]], 3))
    for over in (False, True):
        again = Recall(100)
        again.over = over
        again.load_state_dict(memory.state_dict())
        again.load_state_dict(None)  # of an older checkpoint
        assert again.over == over and len(again.rows) == (0 if over else 3)
        assert again(teacher, words([[4], [3], [1, 2]], 2))["pair"][0].tolist() == said["pair"][0].flip(0).tolist()


def test_a_model_that_reads_on_is_always_asked() -> None:
    class Reads(nn.Module):
        def initial_state(self, batch: int) -> Tensor:
            return torch.zeros(batch)

        def forward(self, ids: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
            return state + ids.sum(1), state + ids.sum(1)

    memory, teacher = Recall(100), carrying(Reads())
    said = [memory(teacher, (torch.ones(2, 3, dtype=torch.int64),)).tolist() for _ in range(2)]
    assert said == [[3.0, 3.0], [6.0, 6.0]]
