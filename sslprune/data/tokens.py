"""Running text as tokens of a Hugging Face tokenizer: the model's own, so that its words are the model's words.

The text is tokenised as it stands, line ends included. Training and evaluation read it as ``data.text`` reads words; a
model that carries no state sees ``data.steps`` tokens at a time, and knows nothing of those before them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sslprune.data.batches import Data, check_overlap
from sslprune.data.samples import Encoder, lines_in, probabilities, read_lines
from sslprune.errors import DataError, RunError
from sslprune.models.huggingface import check_tokens, load_tokenizer, save_tokenizer
from sslprune.recipe import RunningTextSection
from sslprune.values.inputs import Inputs

LONGEST = 1_000_000  # tokens: a model without places reads any number
NEXT_TOKENS = 5  # of an answer


@dataclass(frozen=True)
class TokenData(Data):
    """Tokens, which a model has to know."""

    def check(self, model: nn.Module) -> None:
        """Raise DataError unless ``model`` knows the tokenizer's tokens, and takes as many as are read at once."""
        assert isinstance(self.encoder, TokenEncoder)
        check_overlap(self.test, model)
        steps = self.encoder.read_at_once
        check_tokens(self.encoder.tokenizer, model, steps, f"data.steps: {steps} tokens")


@dataclass(frozen=True)
class TokenEncoder(Encoder):
    """A beginning as token ids, with the token that begins a text before it; the answer is how it goes on.

    ``read_at_once``: tokens of a batch; ``steps``: likewise, where the model's graph has that one length.
    """

    continues = True
    tokenizer: Any
    read_at_once: int
    steps: int | None = None

    @property
    def longest(self) -> int:  # type: ignore[override]
        """How many tokens the model takes, as the tokenizer knows it."""
        return min(int(self.tokenizer.model_max_length), LONGEST)

    @property
    def start(self) -> int | None:
        """The id of what comes before a text; None where the tokenizer has nothing for it."""
        made = self.tokenizer
        return made.bos_token_id if made.bos_token_id is not None else made.eos_token_id

    def tokens(self, text: str) -> list[int]:
        """The ids of a text, without anything before or after it."""
        return self.tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]

    def ids(self, path: str) -> Tensor:
        """The ids of a file of text, (tokens,) int64."""
        return torch.tensor(self.tokens("\n".join(read_lines(path)) + "\n"))

    def samples(self, given: str) -> list[str]:
        return lines_in(given)

    @property
    def end(self) -> int | None:  # type: ignore[override]
        return self.tokenizer.eos_token_id

    @property
    def longest_text(self) -> int:  # type: ignore[override]
        return self.steps or self.longest

    @property
    def num_tokens(self) -> int:  # type: ignore[override]
        return len(self.tokenizer)

    def encode(self, sample: str) -> Inputs:
        ids = self.begun(sample)
        if not ids:
            raise DataError(f'"{sample[:60]}": holds no token')
        if len(ids) > self.longest_text:
            raise DataError(
                f'"{sample[:60]}": {len(ids)} tokens, the model takes at most {self.longest_text}; give fewer'
            )
        return self.inputs(ids)

    def text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def told(self, sample: str, logits: np.ndarray) -> dict[str, float]:
        """The likeliest next tokens, as text, with their probabilities."""
        shares = probabilities(logits[0, len(self.begun(sample)) - 1])
        found: dict[str, float] = {}
        for i in np.argsort(-shares, kind="stable")[:NEXT_TOKENS]:
            found.setdefault(self.tokenizer.decode([int(i)]), float(shares[i]))
        return found

    def save(self, folder: Path) -> None:
        """Write the tokenizer's own files into ``folder``."""
        save_tokenizer(self.tokenizer, folder)

    def begun(self, sample: str) -> list[int]:
        return ([] if self.start is None else [self.start]) + self.tokens(sample)


def token_encoder(section: RunningTextSection, path: str, longest: int | None = None) -> TokenEncoder:
    """What makes tokens of text: the tokenizer of a Hugging Face directory. Raises DataError where there is none.

    ``longest``: how many tokens the model takes, whatever the tokenizer thinks.
    """
    tokenizer = load_tokenizer(path)
    if longest is not None:
        tokenizer.model_max_length = longest  # which is saved with it
    return TokenEncoder(tokenizer, section.steps, section.steps if section.fixed_length else None)


def reopen(section: RunningTextSection, folder: Path) -> TokenEncoder:
    """What reads one more text: the tokenizer that ``save`` wrote into ``folder``."""
    if not folder.is_dir():
        raise RunError(f"{folder}: no tokenizer there; repack this run again")
    return token_encoder(section, str(folder))
