"""A checkpoint loads as it is found, or says in one line why not."""

import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sslprune.errors import CheckpointError, RecipeError
from sslprune.models.build import build_model, find_callable, load_trained
from sslprune.recipe import ModelSection
from sslprune.zoo import digits_cnn, resnet_cifar

FACTORY = "sslprune.zoo:digits_cnn"


def load(path) -> tuple[nn.Module, list[str]]:
    return build_model(ModelSection(factory=FACTORY, arguments={"width": 2}, checkpoint=str(path)))


@pytest.fixture
def weights():
    torch.manual_seed(1)
    return digits_cnn(2).state_dict()


def test_plain_files(tmp_path, weights):
    torch.save(weights, tmp_path / "w.pth")
    save_file(weights, tmp_path / "w.safetensors")
    for file in ("w.pth", "w.safetensors"):
        model, notes = load(tmp_path / file)
        assert notes == []
        assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_a_model_without_numbers_is_refused(tmp_path, weights):
    (tmp_path / "meta.py").write_text(
        "from sslprune.zoo import digits_cnn\ndef net():\n    return digits_cnn(2).to('meta')\n"
    )
    torch.save(weights, tmp_path / "w.pt")
    for checkpoint in (None, str(tmp_path / "w.pt")):
        with pytest.raises(RecipeError, match=r"model\.factory: .*meta.py:net: stem\.weight is on the meta device"):
            build_model(ModelSection(factory=f"{tmp_path}/meta.py:net", checkpoint=checkpoint))


def test_unwrapping_is_reported(tmp_path, weights):
    nested = {"state_dict": {f"module.{name}": value for name, value in weights.items()}, "best_prec1": 91.5}
    torch.save(nested, tmp_path / "w.th")
    model, notes = load(tmp_path / "w.th")
    assert notes == [
        "w.th: took 'state_dict' of 2 entries",
        f"w.th: removed prefix 'module.' from {len(weights)} keys",
    ]
    assert torch.equal(model.state_dict()["stem.weight"], weights["stem.weight"])


def test_missing_and_unexpected_keys_are_listed(tmp_path, weights):
    weights["extra.weight"] = weights.pop("linear.bias")
    torch.save(weights, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"missing linear\.bias; unexpected extra\.weight"):
        load(tmp_path / "w.pt")


def test_other_shapes_are_listed(tmp_path):
    torch.save(digits_cnn(3).state_dict(), tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"stem\.weight is \(3, 1, 3, 3\), the model's \(2, 1, 3, 3\)"):
        load(tmp_path / "w.pt")


def test_values_that_are_not_finite_are_named(tmp_path, weights):
    weights["down.weight"][0, 0, 0, 0] = float("nan")
    torch.save(weights, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"not finite in down\.weight"):
        load(tmp_path / "w.pt")


def test_whole_modules_are_refused(tmp_path):
    torch.save(digits_cnn(2), tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"pickled object.*model\.state_dict\(\)"):
        load(tmp_path / "w.pt")


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_truncated_files(tmp_path, weights, name):
    whole = tmp_path / name
    torch.save(weights, whole) if name.endswith("pt") else save_file(weights, whole)
    whole.write_bytes(whole.read_bytes()[:-600])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        load(whole)
    whole.write_bytes(b"")
    with pytest.raises(CheckpointError):
        load(whole)


def test_other_mistakes(tmp_path):
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load(tmp_path / "absent.pt")
    (tmp_path / "w.onnx").touch()
    with pytest.raises(CheckpointError, match="not a known format"):
        load(tmp_path / "w.onnx")
    torch.save({"epoch": 3}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="no tensors"):
        load(tmp_path / "w.pt")
    (tmp_path / "p.pt").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(CheckpointError):
        load(tmp_path / "p.pt")


def test_factories(tmp_path):
    (tmp_path / "nets.py").write_text("from torch import nn\ndef build(width): return nn.Linear(width, 2)\n")
    model, _ = build_model(ModelSection(factory=f"{tmp_path}/nets.py:build", arguments={"width": 3}))
    assert isinstance(model, nn.Linear)
    for factory, message in (
        ("digits_cnn", "expected"),
        ("absent.module:build", "cannot import"),
        ("sslprune.zoo:absent", "no callable absent"),
    ):
        with pytest.raises(RecipeError, match=message):
            find_callable(factory, "model.factory")
    with pytest.raises(RecipeError, match=r"model\.arguments.*depth must be 6n \+ 2"):
        build_model(ModelSection(factory="sslprune.zoo:resnet_cifar", arguments={"depth": 21}))
    with pytest.raises(RecipeError, match=r"model\.arguments"):
        build_model(ModelSection(factory=FACTORY, arguments={"size": 21}))


def test_resnet_cifar():
    model = resnet_cifar(20).eval()
    names = set(model.state_dict())
    assert {"conv1.weight", "layer2.0.conv1.weight", "layer3.2.bn2.running_var", "linear.bias"} <= names
    assert not any("shortcut" in name or "downsample" in name for name in names)
    assert sum(parameter.numel() for parameter in model.parameters()) == 269_722  # He et al. 2016, table 6: 0.27M
    assert model(torch.randn(3, 3, 32, 32)).shape == (3, 10)


class Versioned(nn.Linear):
    """A module that loads by the version of what it is given, as torchvision's MNASNet does."""

    _version = 2

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *rest):
        if local_metadata.get("version") != 2:
            raise ValueError(f"version should be 2 instead of {local_metadata.get('version')}")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


def test_weights_that_fit_are_of_the_models_own_version(tmp_path):
    torch.manual_seed(0)
    weights = Versioned(2, 3).state_dict()
    save_file(weights, tmp_path / "w.safetensors")
    section = ModelSection(factory=f"{__name__}:Versioned", arguments={"in_features": 2, "out_features": 3})
    for model in (
        build_model(section.model_copy(update={"checkpoint": str(tmp_path / "w.safetensors")}))[0],
        load_trained(section, tmp_path / "w.safetensors"),
    ):
        assert torch.equal(model.get_parameter("weight"), weights["weight"])
