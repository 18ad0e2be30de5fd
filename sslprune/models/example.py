"""What a model is called with where there are no data: by a person's words, or by what the model says of itself."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sslprune.capture.mode import evaluating
from sslprune.errors import RecipeError
from sslprune.models.huggingface import max_positions
from sslprune.values.own_code import told

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "int32": torch.int32,
    "uint8": torch.uint8,
    "bool": torch.bool,
}
GIVEN = re.compile(r"(?:(?P<name>[A-Za-z_]\w*)=)?(?:(?P<dtype>[a-z]+\d*):)?(?P<shape>\d+(?:\s*[,x]\s*\d+)*)")
ROWS = 2  # of the batch, at least: of one row alone it cannot be seen that it may be any number
MOST_NUMBERS = 1 << 28
TOKENS = 64  # of a text, where the model has places for them
HINT = "--input 1,3,224,224 (float32), --input int64:1,64, or --input NAME=int64:1,64 for each"


@dataclass(frozen=True)
class Example:
    """Inputs for one call: of random numbers, and of whole ones 0 and 1, which every vocabulary has."""

    args: tuple[Tensor, ...]
    kwargs: dict[str, Tensor]
    sequence: int | None = None  # dimension 1 is a length of at most so many steps

    def check(self, model: nn.Module) -> None:
        """Raise RecipeError if ``model`` refuses them."""
        try:
            with torch.no_grad(), evaluating(model):
                model(*self.args, **self.kwargs)
        except Exception as error:  # whatever a person's own model raises
            shapes = [f"{str(t.dtype).removeprefix('torch.')}:{','.join(map(str, t.shape))}" for t in self.args]
            shapes += [f"{name}={tuple(t.shape)}" for name, t in self.kwargs.items()]
            raise RecipeError(
                f"--input: {type(model).__name__} refuses {' '.join(shapes)}: {told(error)}; give {HINT} input"
            ) from error


def example_from(texts: Sequence[str]) -> Example:
    """Inputs as a person writes them: "1,3,224,224", "int64:2,64", "mask=bool:2,64"; the first size is the batch.

    Raises RecipeError for one that cannot be read.
    """
    args: list[Tensor] = []
    kwargs: dict[str, Tensor] = {}
    for text in texts:
        match = GIVEN.fullmatch(text.strip())
        if match is None or (match["dtype"] or "float32") not in DTYPES:
            raise RecipeError(f'--input: "{text}"; expected {HINT} input; types are {", ".join(DTYPES)}')
        shape = [int(size) for size in re.split(r"[,x]", match["shape"])]
        if not 0 < torch.Size(shape).numel() <= MOST_NUMBERS:
            raise RecipeError(f'--input: "{text}": expected 1 to {MOST_NUMBERS:,} numbers')
        tensor = _made([max(ROWS, shape[0]), *shape[1:]], DTYPES[match["dtype"] or "float32"])
        if match["name"]:
            kwargs[match["name"]] = tensor
        elif kwargs:
            raise RecipeError(f'--input: "{text}" has no name and stands behind one that has; give it a name, too')
        else:
            args.append(tensor)
    return Example(tuple(args), kwargs)


def example_of(model: nn.Module, factory: str) -> Example:
    """Inputs by what ``model`` says of itself: timm's default_cfg, the configuration of a Hugging Face model, 224 x 224
    pixels of torchvision. Raises RecipeError for one that says nothing."""
    own: Any = getattr(model, "default_cfg", None)
    if isinstance(own, dict) and own.get("input_size"):
        return Example((_made([ROWS, *own["input_size"]], torch.float32),), {})
    main, config = getattr(model, "main_input_name", None), getattr(model, "config", None)
    if main == "input_ids" and config is not None:
        length = min(TOKENS, max_positions(config) or TOKENS)
        return Example((), {"input_ids": _made([ROWS, length], torch.int64)}, length)
    side = getattr(config, "image_size", None)
    if main == "pixel_values" and side is not None:
        sides = list(side) if isinstance(side, list | tuple) else [side, side]
        return Example((), {main: _made([ROWS, getattr(config, "num_channels", 3), *sides], torch.float32)})
    if factory.startswith("torchvision"):
        return Example((_made([ROWS, 3, 224, 224], torch.float32),), {})
    raise RecipeError(f"--input: nothing says what {factory} is called with; give {HINT} input")


def _made(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.randint(2, shape, generator=generator).to(dtype)
