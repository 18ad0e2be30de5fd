"""Checkpoints are read by what is in them, whatever they are called, and unwrapped as far as the model's names say."""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import random
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import prune

from sslprune.errors import CheckpointError, RecipeError, SslpruneError
from sslprune.models.build import build_model
from sslprune.models.checkpoint import load_checkpoint, load_weights, unwrap
from sslprune.recipe import ModelSection, parse_recipe
from sslprune.run.build import as_model
from sslprune.train import checkpoint
from sslprune.train.checkpoint import write_weights
from sslprune.train.teacher import as_model as of_teacher
from sslprune.zoo import digits_cnn

FACTORY = "sslprune.zoo:digits_cnn"
Weights = dict[str, Tensor]


def load(path: Path, **section: Any) -> tuple[nn.Module, list[str]]:
    return build_model(ModelSection(factory=FACTORY, arguments={"width": 2}, checkpoint=str(path), **section))


@pytest.fixture
def weights() -> Weights:
    torch.manual_seed(1)
    return digits_cnn(2).state_dict()


def check(path: Path, weights: Weights, **section: Any) -> list[str]:
    model, notes = load(path, **section)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    return notes


@pytest.mark.parametrize("name", ["w.pth.tar", "w", "w.ckpt", "w.safetensors", "w.model"])
@pytest.mark.parametrize("write", ["zip", "before-1.6", "safetensors"])
def test_the_name_says_nothing(name: str, write: str, weights: Weights, tmp_path: Path) -> None:
    if write == "safetensors":
        save_file(weights, tmp_path / name)
    else:
        torch.save(weights, tmp_path / name, _use_new_zipfile_serialization=write == "zip")
    assert check(tmp_path / name, weights) == []


def test_a_lightning_checkpoint_with_objects_in_it(weights: Weights, tmp_path: Path) -> None:
    class AttributeDict(dict[str, Any]):
        pass

    globals()["AttributeDict"] = AttributeDict
    AttributeDict.__qualname__ = "AttributeDict"
    torch.save(
        {
            "epoch": 3,
            "best": np.float64(91.5),
            "state_dict": {f"model.{name}": value for name, value in weights.items()},
            "hyper_parameters": AttributeDict(options=argparse.Namespace(lr=0.1), folder=Path("data")),
            "optimizer_states": [{"state": {0: torch.ones(2)}}],
        },
        tmp_path / "last.ckpt",
    )
    notes = check(tmp_path / "last.ckpt", weights)
    assert notes == [
        "last.ckpt: took 'state_dict' of 5 entries",
        f"last.ckpt: removed prefix 'model.' from {len(weights)} keys",
    ]


class Marks:
    """Unpickled, it makes the folder ``marker``."""

    def __init__(self, marker: Path, function: Callable[..., Any] = os.mkdir) -> None:
        self.marker, self.function = str(marker), function

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, (self.marker,)


def test_code_in_a_checkpoint_is_not_run(weights: Weights, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    for inner in (Marks(marker), Marks(marker, Path.mkdir), Marks(marker, np.save)):
        torch.save({"state_dict": weights, "hyper_parameters": inner}, tmp_path / "w.pt")
        try:
            check(tmp_path / "w.pt", weights)
        except CheckpointError as error:
            assert "pickled object" in str(error)
        assert not marker.exists() and not marker.with_suffix(".npy").exists()


@pytest.mark.parametrize(
    "prefix", ["module.", "model.module.", "module._orig_mod.model.", "_orig_mod.module.", "module.module."]
)
def test_prefixes_go_in_any_order(prefix: str, weights: Weights, tmp_path: Path) -> None:
    torch.save({prefix + name: value for name, value in weights.items()}, tmp_path / "w.pt")
    assert len(check(tmp_path / "w.pt", weights)) == prefix.count(".")


def test_a_prefix_that_is_a_name_of_the_model_stays() -> None:
    own = {"model.a": torch.ones(1), "model.b": torch.ones(1)}
    for wrapped in ("", "module.", "model.", "_orig_mod.model."):
        found, _ = unwrap({wrapped + name: value for name, value in own.items()}, "w.pt", set(own))
        assert set(found) == set(own)


def test_a_key_names_the_table(weights: Weights, tmp_path: Path) -> None:
    other = {name: value + 1 for name, value in weights.items()}
    torch.save({"params": other, "params_ema": weights, "deep": {"ema": weights}, "iter": 5}, tmp_path / "w.pth")
    for key in ("params_ema", "deep.ema"):
        assert check(tmp_path / "w.pth", weights, key=key)[0] == f"w.pth: took '{key}' of 4 entries"
    with pytest.raises(CheckpointError, match=r"holds several tables, params, params_ema, deep; set model\.key"):
        load(tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"has no table 'ema'; it holds params, params_ema, deep"):
        load(tmp_path / "w.pth", key="ema")
    torch.save({"params": weights, "optimizer": {"state": {0: torch.ones(2)}}}, tmp_path / "one.pth")
    assert check(tmp_path / "one.pth", weights) == ["one.pth: took 'params' of 2 entries"]
    values = {"model": {"factory": FACTORY, "key": "ema"}, "data": {"factory": "sslprune.data:digits"}, "budget": 0.5}
    with pytest.raises(RecipeError, match=r"model\.key: names a table of the checkpoint"):
        parse_recipe({**values, "prune": [{"kind": "filters"}], "schedule": {"sparse": "1ep", "heal": "1ep"}})


def test_a_control_and_a_teacher_name_their_table(weights: Weights, tmp_path: Path) -> None:
    other = {name: value + 1 for name, value in weights.items()}
    torch.save({"params": other, "params_ema": weights}, tmp_path / "w.pth")
    given = {"factory": FACTORY, "arguments": {"width": 2}, "checkpoint": str(tmp_path / "w.pth")}
    values: dict[str, Any] = {
        "model": {"factory": FACTORY},
        "data": {"factory": "sslprune.data:digits"},
        "budget": 0.5,
        "prune": [{"kind": "filters"}],
        "schedule": {"sparse": "1ep", "heal": "1ep"},
    }

    def read(**keys: str) -> list[ModelSection]:
        built = {**given, **keys}
        recipe = parse_recipe({**values, "distill": {"teacher": built}, "control": [{"name": "x", **built}]})
        assert recipe.distill is not None and recipe.distill.teacher is not None
        return [as_model(recipe.control[0]), of_teacher(recipe.distill.teacher)]

    for section in read(key="params_ema"):
        model, _ = build_model(section)
        assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    for section in read():
        with pytest.raises(CheckpointError, match="holds several tables, params, params_ema"):
            build_model(section)
    del given["checkpoint"]
    with pytest.raises(
        RecipeError, match=r"control\.0\.key: names a table of the checkpoint; set control\.0\.checkpoint"
    ):
        parse_recipe({**values, "control": [{"name": "x", **given, "key": "a"}]})
    with pytest.raises(RecipeError, match=r"distill\.teacher\.key: names a table"):
        parse_recipe({**values, "distill": {"teacher": {**given, "key": "a"}}})
    with pytest.raises(RecipeError, match=r"distill\.teacher: a run has its own arguments and checkpoint"):
        parse_recipe({**values, "distill": {"teacher": {"run": "runs/x", "key": "a"}}})


def test_a_sharded_index(weights: Weights, tmp_path: Path) -> None:
    names = sorted(weights)
    for file, part in (("a.safetensors", names[:3]), ("b.safetensors", names[3:])):
        save_file({name: weights[name] for name in part}, tmp_path / file)
    places = {name: "a.safetensors" if name in names[:3] else "b.safetensors" for name in names}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    assert check(index, weights) == []
    for wrong, said in (
        ({**places, "more": "a.safetensors"}, "its shards lack more"),
        ({**places, "more": "c.safetensors"}, "its shard c.safetensors is missing"),
        ({**places, "more": "../a.safetensors"}, "is not a file beside it"),
        ({**places, "more": index.name}, "not a known format|truncated or damaged|damaged"),
    ):
        index.write_text(json.dumps({"weight_map": wrong}))
        with pytest.raises(CheckpointError, match=said):
            load(index)
    index.write_text("{}")
    with pytest.raises(CheckpointError, match="a JSON file without a weight_map"):
        load(index)


def test_masks_of_torch_prune_are_folded(tmp_path: Path) -> None:
    model = digits_cnn(2)
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    for layer in layers:
        prune.l1_unstructured(layer, "weight", 0.5)
    torch.save({f"module.{name}": value for name, value in model.state_dict().items()}, tmp_path / "w.pt")
    loaded, notes = load(tmp_path / "w.pt")
    assert notes[0] == f"w.pt: multiplied {len(layers)} weights with the masks of torch.nn.utils.prune"
    for layer in layers:
        prune.remove(layer, "weight")
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())


def test_archives_are_named_for_what_they_are(weights: Weights, tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(tmp_path / "script.pt"))
    with tarfile.open(tmp_path / "old.pt", "w", format=tarfile.USTAR_FORMAT) as tar:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),)), tmp_path / "program.pt2")
    np.savez(tmp_path / "arrays.npz", a=np.ones(2))
    (tmp_path / "keras.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(600))
    (tmp_path / "pointer.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    (tmp_path / "empty.pt").touch()
    for name, said in (
        ("script.pt", "a TorchScript archive"),
        ("old.pt", "a tar archive, as the first versions of PyTorch wrote"),
        ("program.pt2", r"an exported program \(.pt2\); set it as model.factory"),
        ("arrays.npz", "a zip archive that torch.save did not write"),
        ("keras.h5", "an HDF5 file"),
        ("pointer.safetensors", "a Git LFS pointer"),
        ("empty.pt", "empty"),
        (".", "a directory"),
    ):
        with pytest.raises(CheckpointError, match=said):
            load(tmp_path / name)


def test_permission_denied_is_not_damage(weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(weights, tmp_path / "w.safetensors")

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    for name in ("builtins.open", "sslprune.models.weight_files.load_file"):
        with monkeypatch.context() as patch:
            patch.setattr(name, denied)
            with pytest.raises(CheckpointError, match=r"w.safetensors: cannot be read \(Permission denied\)$"):
                load_checkpoint(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda value: value.to(torch.complex64), "holds complex numbers, the model's floating-point numbers"),
        (lambda value: value.to("meta"), "holds no numbers"),
        (lambda value: value.to(torch.int8), "holds integers, the model's floating-point numbers"),
        (lambda value: value > 0, "holds integers"),
        (lambda value: value.to_sparse(), "holds sparse_coo float32"),
    ],
)
def test_other_numbers_are_refused(
    change: Callable[[Tensor], Tensor], said: str, weights: Weights, tmp_path: Path
) -> None:
    weights["stem.weight"] = change(weights["stem.weight"])
    torch.save(weights, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=rf"other numbers: stem\.weight {said}"):
        load(tmp_path / "w.pt")


def test_half_precision_is_read(weights: Weights, tmp_path: Path) -> None:
    halves = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
    torch.save(halves, tmp_path / "w.pt")
    check(tmp_path / "w.pt", {name: value.to(weights[name].dtype) for name, value in halves.items()})


def test_mutated_files_end_in_one_line(weights: Weights, tmp_path: Path) -> None:
    torch.save({"state_dict": weights, "folder": Path("data"), "epoch": 3}, tmp_path / "zip.pt")
    torch.save(weights, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    save_file(weights, tmp_path / "w.safetensors")
    save_file(weights, tmp_path / "shard.safetensors")
    index = {"weight_map": dict.fromkeys(weights, "shard.safetensors")}
    (tmp_path / "index.json").write_text(json.dumps(index))
    model, draw, count = digits_cnn(2), random.Random(0), 0
    for source in ("zip.pt", "old.pt", "w.safetensors", "index.json"):
        whole = (tmp_path / source).read_bytes()
        for _ in range(60):
            content = bytearray(whole)
            at = draw.randrange(min(len(content), draw.choice((100, 2000, 1 << 30))))
            content[at : at + draw.choice((0, 1, 1, 8))] = draw.randbytes(draw.choice((0, 1, 1, 8)))
            (tmp_path / "mutated").write_bytes(content)
            try:
                found, _ = unwrap(load_checkpoint(tmp_path / "mutated"), "mutated", set(model.state_dict()))
                load_weights(model, found, "mutated")
            except CheckpointError as error:
                count += 1
                assert "\n" not in str(error)
    assert count > 100


def test_a_pickle_of_something_else(tmp_path: Path) -> None:
    for value in ([1, 2], {"a": 1}, "text", {1: {2: 3}}):
        for write in (lambda v, p: p.write_bytes(pickle.dumps(v)), torch.save):
            write(value, tmp_path / "w.pt")
            with pytest.raises(CheckpointError):
                load(tmp_path / "w.pt")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "weights.pt"
    os.mkfifo(pipe)
    with pytest.raises(CheckpointError, match="a pipe or a device; copy what it gives into a file"):
        load_checkpoint(pipe)


def test_weights_are_written_from_where_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = torch.arange(12.0).view(3, 4)
    held = {
        "whole": whole,
        "tied": whole,
        "row": whole[1],
        "turned": whole.T,
        "none": torch.zeros(0),
        "one": whole[0, 0],
    }
    write_weights(tmp_path / "w.safetensors", held)
    found = load_file(tmp_path / "w.safetensors")
    assert found.keys() == held.keys() and all(torch.equal(found[name], tensor) for name, tensor in held.items())

    def full(*_: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(SslpruneError, match=r"w\.safetensors: cannot be written \(.*No space left.*; free space"):
        write_weights(tmp_path / "w.safetensors", held)
    assert load_file(tmp_path / "w.safetensors").keys() == held.keys()
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]
