"""Why a model cannot be traced, in one line for people: the reason, the module, and the line of their own source."""

from __future__ import annotations

import copy
import functools
import linecache
import os
import re
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import fx, nn

from sslprune.capture.mode import tried
from sslprune.capture.program import module_of, operator_name, quiet
from sslprune.errors import TraceError

NOT_THEIRS = tuple(  # source files that a person looks for no mistake in
    str(Path(folder).resolve()) + "/" for folder in (Path(torch.__file__).parent, Path(__file__).parent)
)


REASON, LINE = 300, 100  # characters of torch's reason and of a line of source that are quoted


def place(node: fx.Node, short: bool = False) -> str:
    """A node's operator, module and line of the person's source, for people.

    ``short``: files are named from the working directory on, or from the folder of installed libraries.
    """
    path = module_of(node)
    lines = re.findall(r'File "(.+?)", line (\d+), in .*\n\s*(.*)', node.meta.get("stack_trace") or "")
    theirs = [(_short(file) if short else file, line, code) for file, line, code in lines if _is_theirs(file)]
    source = f" ({_source(*theirs[-1])})" if theirs else ""
    return f"{operator_name(node)}{f' in {path}' if path else ''}{source}"


def _short(file: str) -> str:
    return file.rpartition("site-packages/")[2].removeprefix(os.getcwd() + "/")


def _source(file: str, line: int | str, code: str) -> str:
    code = code.strip()
    return f"{file}:{line}" + (f": {code if len(code) <= LINE else code[: LINE - 3] + '...'}" if code else "")


def why_not(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], error: Exception) -> str:
    """What keeps ``model`` from being exported: its state, the example inputs, or what ``torch.export`` says."""
    parts = list(model.named_modules())
    for path, part in parts:
        for name, tensor in (*part._parameters.items(), *part._buffers.items()):
            if nn.parameter.is_lazy(tensor):
                name = f"{path}.{name}" if path else name
                return f"cannot be exported: {name} is not initialised yet; run the model once on an example before"
    failure = own_failure(model, args, kwargs)
    if failure is not None:
        return own_failure_text(args, kwargs, failure, model)
    for path, part in parts:
        state = "scripted" if isinstance(part, torch.jit.ScriptModule) else "quantized" if _is_quantized(part) else ""
        if state:
            name = f"{path} is" if path else "it is"
            return f"cannot be exported: {name} {state} ({type(part).__name__}); trace the model before that is done"
    return f"cannot be exported: {reason(error)}{where(error, model)}"


def own_failure(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Exception | None:
    """What the model's forward raises on the inputs, run as it is; buffers and random numbers are left as they were."""
    try:
        with quiet(), tried(model), torch.no_grad():
            model(*copy.deepcopy(args), **copy.deepcopy(kwargs))
    except Exception as error:
        return error
    return None


def own_failure_text(args: tuple[Any, ...], kwargs: dict[str, Any], failure: Exception, model: nn.Module) -> str:
    given = ", ".join([*map(_shown, args), *(f"{name}={_shown(value)}" for name, value in kwargs.items())])
    return f"fails by itself on the example inputs ({given}): {reason(failure)}{where(failure, model)}"


def _is_quantized(part: nn.Module) -> bool:
    own = (*part._parameters.values(), *part._buffers.values(), *vars(part).values())
    return any(isinstance(v, torch.ScriptObject) or (isinstance(v, torch.Tensor) and v.is_quantized) for v in own)


def _shown(value: Any) -> str:
    """An input as people name it: ``float32 (2, 3)`` for a tensor."""
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_shown, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_shown(entry)}' for key, entry in value.items())}}}"
    return repr(value) if isinstance(value, (bool, int, float, str, type(None))) else type(value).__name__


def reason(error: BaseException) -> str:
    """What an exception says, in one line."""
    text = " ".join(line.strip() for line in str(error).split("\n\n")[0].splitlines())
    if isinstance(error, TraceError):
        return text
    if "data-dependent" in text or "DataDependent" in type(error).__name__:
        text = f"what it computes depends on the data: {text}"
    text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= REASON else text[: REASON - 3] + "..."


def where(error: BaseException, model: nn.Module) -> str:
    """The module and the line of the person's own source in which an exception was raised."""
    paths = {id(module): path for path, module in model.named_modules()}
    path, source = "", ""
    trail = error.__traceback__
    while trail is not None:
        frame: FrameType = trail.tb_frame
        path = paths.get(id(frame.f_locals.get("self")), path)
        file = frame.f_code.co_filename
        if _is_theirs(file):
            source = _source(file, trail.tb_lineno, linecache.getline(file, trail.tb_lineno, frame.f_globals))
        trail = trail.tb_next
    found = [f"in {path}" if path else "", f"({source})" if source else ""]
    return "".join(f" {part}" for part in found if part)


@functools.cache
def _is_theirs(file: str) -> bool:
    """Whether a source file is neither torch's, Python's nor this package's: there a person can mend something."""
    if not Path(file).is_file():
        return False
    file = str(Path(file).resolve())
    library = str(Path(sysconfig.get_paths()["stdlib"]).resolve()) + "/"
    return not file.startswith(NOT_THEIRS) and (not file.startswith(library) or "site-packages" in file)
