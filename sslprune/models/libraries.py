"""Models by the names that libraries give them: "torchvision:resnet50", "timm:convnext_tiny"."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

from sslprune.errors import RecipeError, first_line

# of each library: the module, its function that lists names, and the one that makes a model of a name
LIBRARIES = {
    "torchvision": ("torchvision.models", "list_models", "get_model"),
    "timm": ("timm", "list_models", "create_model"),
}


def library_of(reference: str) -> str | None:
    """The library that "library:name" is about; None for any other factory."""
    library = reference.partition(":")[0]
    return library if library in LIBRARIES and ":" in reference else None


def published(reference: str, field: str) -> Callable[..., Any]:
    """What makes the model of "library:name"; its keywords are the library's own (``num_classes = 10``).

    Raises RecipeError, which begins with ``field``, for a library that is not installed and a name that it lacks.
    """
    library, _, name = reference.partition(":")
    module, lists, makes = LIBRARIES[library]
    try:
        found = importlib.import_module(module)
    except Exception as error:  # beside another torch it raises what it likes
        why = "is not installed" if isinstance(error, ModuleNotFoundError) else f"does not import: {first_line(error)}"
        raise RecipeError(f"{field}: {library} {why}; pip install {library}") from error
    known = getattr(found, lists)()
    if name.partition(".")[0] not in known:  # of timm, a name may have a checkpoint's tag behind it
        near = difflib.get_close_matches(name, known, n=1)
        raise RecipeError(
            f'{field}: {library} has no model "{name}"'
            + (f"; did you mean {library}:{near[0]}?" if near else f"; it lists them by {module}.{lists}()")
        )
    return partial(getattr(found, makes), name)
