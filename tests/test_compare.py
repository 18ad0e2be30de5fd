"""The comparison with Torch-Pruning on a small network: each of our arms ends in a line that the table can read."""

import json
import sys

import pytest
import torch

from sslprune.zoo import resnet_cifar

pytest.importorskip("pyarrow")
from scripts import compare_torch_pruning
from tests.test_data import png, write


@pytest.fixture
def compare(tmp_path, monkeypatch):
    torch.manual_seed(0)
    torch.save(resnet_cifar(depth=8).state_dict(), tmp_path / "resnet8.pt")
    for name, count in (("train", 48), ("test", 16)):
        write(
            tmp_path / f"{name}.parquet",
            [png(32, 32, value=9 * i % 256) for i in range(count)],
            [*range(8)] * (count // 8),
        )
    fixed = ["--depth", "8", "--checkpoint", "resnet8.pt", "--train", "train.parquet", "--test", "test.parquet"]
    fixed += ["--sparse", "12it", "--heal", "1ep", "--macs", "1/2", "--out", "results.jsonl"]
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["compare", *fixed, "--set", "data.batch_size=16", *arguments])
        compare_torch_pruning.main()
        return [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]

    return call


def test_arms_share_a_teacher_and_come_to_the_table(compare, capsys):
    (dense,) = compare("--arms", "dense")
    assert dense["macs_left"] == 1 and dense["cut"] == dense["before"]
    taught = ["--teacher", f"results/{dense['onnx']}".replace(".onnx", ".pt"), "--teach", "0.9"]
    lines = compare("--arms", "inner", "all", "--ours", "train.heal=fresh", *taught)
    assert [line["arm"] for line in lines] == ["dense", "inner", "all"]
    for line in lines[1:]:
        assert 0.45 < line["macs_left"] <= 0.5 and line["before"] == line["cut"]
        assert line["settings"]["teach"] == 0.9
    assert compare("--arms", "inner", "--ours", "train.heal=fresh", *taught) == lines  # found, not trained again
    capsys.readouterr()
    compare("--table")
    table = capsys.readouterr().out
    assert table.count("| ResNet-8 |") == 3
    compare("--curve")
    curve = capsys.readouterr().out
    assert curve.count("| ResNet-8 |") == 2 and f"| {lines[1]['cut']:.2f} | {lines[1]['end']:.2f} |" in curve


@pytest.mark.parametrize(("ours", "epochs"), [([], [60, 80, 92, 95]), (["calibrate.samples=8"], [50, 60, 80, 92, 95])])
def test_a_calibration_is_no_epoch_on_the_way(ours, epochs):
    """Ours reaches the peer's end, 90, in the third of four epochs, whether a calibration came before them or not."""
    settings = {"sparse": "2ep", "heal": "2ep"}
    same = {"kind": "run", "depth": 8, "seed": 0, "budget": 0.5, "macs_left": 0.5, "cut": 80}
    peer = {**same, "arm": "peer", "settings": settings, "epochs": [85, 70, 20, 90], "end": 90}
    inner = {**same, "arm": "inner", "settings": {**settings, "ours": ours}, "epochs": epochs, "end": 95}
    rows = list(compare_torch_pruning.curve([peer, inner]))
    assert rows[3].startswith("| ResNet-8 | 0.500 | inner | 80.00 | 92.00 | 95.00 |")
    assert rows[3].split(" | ")[9] == "3" and rows[2].split(" | ")[9] == "-"


def test_a_teacher_of_some_arms_alone_is_refused(compare, capsys):
    with pytest.raises(SystemExit):
        compare("--set", "distill.weight=0.5")
    assert "the teacher of all arms is --teacher" in capsys.readouterr().err
