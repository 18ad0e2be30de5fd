"""A module to files that need neither its class nor sslprune: ``.pt2`` and ONNX, each verified before it is kept."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from sslprune.capture.lengths import any_length
from sslprune.capture.program import quiet
from sslprune.capture.trace import keywords_named
from sslprune.errors import ExportError
from sslprune.export.file import feeds_of, rename_dimensions
from sslprune.export.portable import is_portable, make_portable_
from sslprune.files import write_atomic, write_beside
from sslprune.values.carry import carries
from sslprune.values.inputs import num_rows, open_dimensions, other_lengths, tensors_in, with_length

ONNX_TOLERANCE = 1e-3  # relative: ONNX Runtime fuses and reorders sums
PROGRAM_TOLERANCE = 1e-5  # relative: the same operators on the same device
STATE = "state"  # the file within a .pt2 that says that the last input and the last output are carried state
PROTOBUF_LIMIT = 2**31 - 2**24  # bytes of weights in one ONNX file, with room for the graph


def export_onnx(
    module: nn.Module,
    args: tuple[Any, ...],
    path: str | Path,
    kwargs: Mapping[str, Any] | None = None,
    *,
    opset: int | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    sequence: int | None = None,
    dynamic_axes: Mapping[str, str] | None = None,
) -> float:
    """Write ``module`` in eval mode as ONNX with a dynamic batch size, and prove that the file computes the same.

    ``args`` and ``kwargs`` are an example input whose tensors have the batch as dimension 0 and, where ``sequence`` is
    given, a length of at most that many steps as dimension 1, which is dynamic too ("batch", "sequence"). Checked by
    ``onnx.checker``, and by ONNX Runtime against torch on the example and on random inputs of other sizes.
    ``dynamic_axes`` gives open dimensions other names (``{"batch": "N"}``). Weights above 2 GB go to ``<path>.data``.
    Returns the largest relative difference seen. Raises ExportError, and writes nothing, when it cannot be exported
    or differs by more than 1e-3.
    """
    path = Path(path)
    args, kwargs = _paired(args, dict(kwargs or {}))
    size = sum(t.numel() * t.element_size() for t in module.state_dict().values() if isinstance(t, Tensor))
    with quiet(), evaluating(module), row_major(module), torch.no_grad():
        program = export_program(module, args, kwargs, sequence=sequence, onnx=True)
        names = list(output_names or _output_names(module(*args, **kwargs)))
        _check_names(path, module, args, kwargs, input_names, output_names)
        if carries(module) and output_names is None:  # what comes out as next_state_0 goes in as state_0
            input_names, names = _names_with_state(module, args, kwargs, names)
        try:
            with any_length():
                exported = torch.onnx.export(
                    program,
                    dynamo=True,
                    verbose=False,
                    opset_version=opset,
                    input_names=input_names,
                    output_names=names,
                    dynamic_shapes=_dynamic_shapes(module, args, kwargs, sequence, named=True),
                )
        except Exception as error:
            raise ExportError(f"{path.name}: ONNX export failed: {first_line(_told(error))}") from error
        assert exported is not None
        largest = 0.0

        def write(temporary: Path) -> None:
            nonlocal largest
            exported.save(temporary, external_data=size > PROTOBUF_LIMIT)
            if dynamic_axes:
                rename_dimensions(temporary, dynamic_axes)
            largest = _verify_onnx(module, args, kwargs, temporary, path, sequence)

        write_beside(path, write)
    return largest


def save_program(
    module: nn.Module,
    args: tuple[Any, ...],
    path: str | Path,
    kwargs: Mapping[str, Any] | None = None,
    *,
    sequence: int | None = None,
) -> Path:
    """Write ``module`` in eval mode as ``.pt2``, loadable by ``torch.export.load(path).module()`` and nothing else.

    The file is loaded again and compared with ``module``, at other lengths too where ``sequence`` leaves them open,
    before it is kept; raises ExportError if it differs.
    """
    path = Path(path)
    args, kwargs = _paired(args, dict(kwargs or {}))
    with quiet(), evaluating(module), row_major(module), torch.no_grad():
        program = export_program(module, args, kwargs, sequence=sequence)

        def write(temporary: Path) -> None:
            torch.export.save(program, temporary, extra_files={STATE: "last"} if carries(module) else None)
            again = torch.export.load(temporary).module()
            for inputs in [(args, kwargs), *_of_other_lengths((args, kwargs), sequence)]:
                _, relative = difference(module(*inputs[0], **inputs[1]), again(*inputs[0], **inputs[1]))
                if not relative <= PROGRAM_TOLERANCE:
                    raise ExportError(
                        f"{path.name}: loaded again, its output differs by {relative:.1e} (relative) from the model's"
                    )

        return write_atomic(path, write)


def export_program(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    sequence: int | None = None,
    onnx: bool = False,
) -> ExportedProgram:
    """``torch.export`` with dimension 0 (and the length of sequences) of the inputs dynamic, where the model allows.

    Of ATen's operators alone, and with ``onnx`` of such as ONNX has.
    """
    kwargs = dict(kwargs or {})
    try:
        shapes = _dynamic_shapes(module, args, kwargs, sequence)
        with any_length(), keywords_named(module, kwargs):
            program = torch.export.export(module, args, kwargs, dynamic_shapes=shapes)
            if is_portable(program.graph, onnx):
                return program
        plain = program.module()
        make_portable_(plain, onnx)
        with any_length(), keywords_named(plain, kwargs):  # its arguments have other names
            shapes = _dynamic_shapes(plain, args, kwargs, sequence)
            return torch.export.export(plain, args, kwargs, dynamic_shapes=shapes)
    except Exception as error:
        raise ExportError(f"torch.export cannot capture {type(module).__name__}: {first_line(error)}") from error


def difference(expected: Any, actual: Any) -> tuple[float, float]:
    """Largest absolute and relative difference between two (nested) outputs; relative to each tensor's largest value.

    NaN where the two disagree about NaN or shape, so that no comparison ``<= limit`` passes.
    """
    worst_abs = worst_relative = 0.0
    wanted, got = tensors_in(expected), tensors_in(actual)
    if len(wanted) != len(got):
        return float("nan"), float("nan")
    for a, b in zip(wanted, got, strict=True):
        if a.shape != b.shape:
            return float("nan"), float("nan")
        if a.numel() == 0:
            continue
        a, b = a.detach().double().cpu(), b.detach().double().cpu()
        same = (a == b) | (a.isnan() & b.isnan())  # equal infinities and NaNs are no difference
        distance = torch.where(same, 0.0, (a - b).abs()).max().item()
        scale = a[a.isfinite()].abs().max().item() if a.isfinite().any() else 0.0
        if distance != distance:
            return float("nan"), float("nan")
        worst_abs = max(worst_abs, distance)
        worst_relative = max(worst_relative, distance / scale if scale else (0.0 if distance == 0.0 else float("inf")))
    return worst_abs, worst_relative


def random_like(value: Any, batch_size: int, seed: int = 0) -> Any:
    """Inputs of another batch size: normal noise where the example is floating, the example's own rows elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    rows = num_rows(value)
    chosen = torch.randint(rows, (batch_size,), generator=generator)

    def draw(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.dim() or leaf.shape[0] != rows:
            return leaf
        if not leaf.is_floating_point():
            return leaf[chosen.to(leaf.device)]
        noise = torch.randn((batch_size, *leaf.shape[1:]), generator=generator).to(leaf)
        spread = leaf.std(correction=0)
        return noise * (spread if spread > 0 else 1.0) + leaf.mean()

    return pytree.tree_map(draw, value)


def open_session(
    path: str | Path, threads: int = 0, provider: str = "CPUExecutionProvider"
) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session with ``threads`` threads (0: as many as it likes).

    Raises ExportError in one line for a file that is missing, no ONNX, or uses an operator that the runtime lacks, and
    for a provider whose device is not there.
    """
    path = Path(path)
    if not path.is_file():
        raise ExportError(f"{path}: no such file")
    try:
        session = onnxruntime.InferenceSession(str(path), session_options(threads), providers=[provider])
    except Exception as error:
        raise ExportError(
            f"{path}: ONNX Runtime {onnxruntime.__version__} cannot open it: {first_line(error)}"
        ) from error
    if provider not in session.get_providers():  # it falls back on the CPU, and only logs that
        raise ExportError(f"{path}: ONNX Runtime has {provider}, and it finds no device to run on")
    return session


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """Options for ``threads`` threads that leave other sessions of this process alone, and log nothing."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # Idle threads of one session must not take the cores from the other while two are compared.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode inside the block; every submodule's own mode comes back after it."""
    modes = {submodule: submodule.training for submodule in module.modules()}
    try:
        module.eval()
    except NotImplementedError:  # a loaded .pt2 has one mode only, and refuses to be asked
        modes = {}
    try:
        yield
    finally:
        for submodule, training in modes.items():
            submodule.training = training


@contextmanager
def row_major(module: nn.Module) -> Iterator[None]:
    """Parameters that lie row by row inside the block, and as they did before after it.

    Training lays images and their filters channels last; a graph captured so says where each number lies, and ONNX
    then computes those places at each call: a flatten becomes a gather.
    """
    moved = [
        (parameter, parameter.data)
        for parameter in module.parameters()  # by its strides: a dimension of 1 is contiguous wherever it lies
        if parameter.stride() != torch.empty(parameter.shape, device="meta").stride()
    ]
    for parameter, data in moved:
        parameter.data = data.clone(memory_format=torch.contiguous_format)
    try:
        yield
    finally:
        for parameter, data in moved:
            parameter.data = data


def _told(error: BaseException) -> BaseException:
    """The innermost error that says which operator ONNX lacks: what is raised says how to report a bug to torch."""
    while error.__cause__ is not None and "ONNX" in str(error):
        error = error.__cause__
    return error


def first_line(error: BaseException | None) -> str:
    """What an exception says, as one short line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."


def _dynamic_shapes(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], sequence: int | None, named: bool = False
) -> Any:
    """``dynamic_shapes`` for torch.export, or, ``named``, for torch.onnx.export: the open dimensions of each input."""
    dimensions = open_dimensions((args, kwargs), sequence)

    def open_(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return None
        return {d: name if named else Dim.AUTO for d, name in dimensions(leaf).items()}

    with keywords_named(module, kwargs):
        given = inspect.signature(module.forward).bind(*args, **kwargs).arguments
    return pytree.tree_map(open_, dict(given))


def _of_other_lengths(inputs: Any, sequence: int | None) -> list[Any]:
    """The inputs at two other lengths and another batch size, where lengths are open."""
    return [random_like(with_length(inputs, n), 3, seed=n) for n in other_lengths(inputs, sequence)]


def _paired(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The example with two rows where it has one: torch.export takes a dimension of 1 for a constant."""
    leaves = [leaf for leaf in tensors_in((args, kwargs)) if leaf.dim()]
    if not leaves or any(leaf.shape[0] != 1 for leaf in leaves):
        return args, kwargs
    return pytree.tree_map(
        lambda leaf: torch.cat([leaf, leaf]) if isinstance(leaf, Tensor) and leaf.dim() else leaf, (args, kwargs)
    )


def _names_with_state(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: list[str]
) -> tuple[list[str], list[str]]:
    """Names of the inputs and outputs of a model that carries state: "state_0" and "next_state_0", and so on."""
    state = [f"state_{i}" for i in range(len(tensors_in(args[-1])))]
    positional = list(inspect.signature(module.forward).parameters)[: len(args) - 1]
    plain = [*positional, *kwargs] if len(positional) == len(args) - 1 else [f"input_{i}" for i in range(len(args) - 1)]
    others = outputs[: len(outputs) - len(state)]
    return [*plain, *state], [*(["output"] if len(others) == 1 else others), *(f"next_{name}" for name in state)]


def _output_names(output: Any) -> list[str]:
    """``logits`` for the key of a dict, ``output`` for a lone tensor, ``output_0`` and so on for a sequence."""
    named = [(keys, leaf) for keys, leaf in pytree.tree_flatten_with_path(output)[0] if isinstance(leaf, Tensor)]
    if len(named) == 1 and not named[0][0]:
        return ["output"]
    words = [
        "_".join(str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", "")))) for key in keys)
        for keys, _ in named
    ]
    return [word if word.isidentifier() else f"output_{word}" for word in words]


def _check_names(
    path: Path,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    input_names: Sequence[str] | None,
    output_names: Sequence[str] | None,
) -> None:
    """Names that a person chose are as many as there are tensors, and no two alike."""
    found = {"input_names": (input_names, len(tensors_in((args, kwargs))))}
    if output_names:
        found["output_names"] = (output_names, len(tensors_in(module(*args, **kwargs))))
    for key, (names, count) in found.items():
        if names and (len(names) != count or len(set(names)) != count):
            raise ExportError(
                f"{path.name}: {key} are {', '.join(names)}; the model has {count}, and each needs a name of its own"
            )


def _verify_onnx(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], file: Path, path: Path, sequence: int | None
) -> float:
    """Check ``file`` (it will be called ``path``) against ``module``; returns the largest relative difference."""
    try:
        onnx.checker.check_model(str(file), full_check=True)
    except Exception as error:
        raise ExportError(f"{path.name}: onnx.checker rejects it: {first_line(error)}") from error
    session = open_session(file)
    sizes = [random_like((args, kwargs), n, seed=n) for n in (1, 5)] if _dynamic(session) else []
    worst = 0.0
    for inputs in [(args, kwargs), *sizes, *_of_other_lengths((args, kwargs), sequence)]:
        expected = tensors_in(module(*inputs[0], **inputs[1]))
        feeds = feeds_of(session, *inputs)
        try:
            outputs = session.run(None, feeds)
        except Exception as error:
            raise ExportError(f"{path.name}: ONNX Runtime cannot run it: {first_line(error)}") from error
        _, relative = difference(expected, [torch.from_numpy(np.asarray(o)) for o in outputs])
        if not relative <= ONNX_TOLERANCE:
            raise ExportError(
                f"{path.name}: ONNX Runtime differs from torch by {relative:.1e} (relative), {ONNX_TOLERANCE} allowed"
            )
        worst = max(worst, relative)
    return worst


def _dynamic(session: onnxruntime.InferenceSession) -> bool:
    return all(isinstance(i.shape[0], str) for i in session.get_inputs() if i.shape)
