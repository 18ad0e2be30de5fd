"""Pictures where people have them: folders, tables of paths, datasets; cut, turned and read by processes."""

from __future__ import annotations

import csv
import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner, Result

from sslprune.cli import app
from sslprune.data import Data, build_data
from sslprune.data.batches import task_for
from sslprune.data.pictures import apart, reopen
from sslprune.data.rows import FolderRows
from sslprune.errors import DataError, RunError
from sslprune.recipe import Recipe, parse_recipe

Image = pytest.importorskip("PIL.Image")


def has_torchvision() -> bool:
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError):  # RuntimeError: built for another torch
        return False
    return True


needs_torchvision = pytest.mark.skipif(not has_torchvision(), reason="torchvision is not there, or for another torch")
CLASSES = ("cat", "dog", "owl")


def picture(seed: int, width: int = 20, height: int = 20) -> Any:
    """Noise around a grey that the seed decides."""
    noise = np.random.default_rng(seed).integers(0, 40, (height, width, 3))
    return Image.fromarray((noise + 20 * (seed % 10)).astype(np.uint8))


def folder(path: Path, count: int = 6, *, sizes: int = 1, names: tuple[str, ...] = CLASSES) -> Path:
    """A folder for each class of ``count`` JPEGs, of so many sizes."""
    for number, name in enumerate(names):
        (path / name / "more").mkdir(parents=True, exist_ok=True)
        for i in range(count):
            seed = 100 * number + i
            file = path / name / ("more" if i % 2 else "") / f"{i}.jpg"
            picture(seed, 20 + seed % sizes, 20 + (seed // 2) % sizes).save(file, quality=95)
    return path


def recipe(_task: str = "classification", **data: Any) -> Recipe:
    return parse_recipe(
        {
            "model": {"factory": "sslprune.zoo:digits_cnn"},
            "prune": [{"kind": "filters"}],
            "data": {"task": _task, "batch_size": 4, "eval_batch_size": 5, **data},
            "budget": {"macs": 0.5},
            "schedule": {"sparse": "1ep", "heal": "1ep"},
        }
    )


def whole(batches: Iterator[tuple[Any, Tensor]]) -> tuple[Tensor, Tensor]:
    """All the pictures and all the targets of a pass."""
    parts = [(inputs[0], targets) for inputs, targets in batches]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def test_a_folder_of_classes(tmp_path: Path) -> None:
    train, test = folder(tmp_path / "train"), folder(tmp_path / "test", 3, names=CLASSES[1:])
    data = build_data(recipe(train=str(train), test=str(test), mean=[0.5], std=[0.25]))
    assert data.encoder.classes == CLASSES and len(data.train) == 4 and len(data.test) == 2
    pixels, labels = whole(iter(data.test))
    assert pixels.shape == (6, 3, 20, 20) and labels.tolist() == [1, 1, 1, 2, 2, 2]  # the classes of training
    with Image.open(test / "dog/0.jpg") as first:
        expected = torch.from_numpy(np.array(first)).permute(2, 0, 1) / 255
    assert torch.allclose(pixels[0], (expected - 0.5) / 0.25, atol=1e-6)
    assert torch.equal(data.encode(str(test / "dog/0.jpg"))[0], pixels[:1])  # type: ignore[index]
    assert torch.equal(data.example[0], pixels[:2])  # type: ignore[index]
    trained, of_them = whole(data.train.epoch(0))
    assert len(trained) == 16 and set(of_them.tolist()) == {0, 1, 2}


def test_a_share_of_each_class_is_kept_for_the_test(tmp_path: Path) -> None:
    train = folder(tmp_path / "all", 10)
    data = build_data(recipe(train=str(train), split=0.2))
    _, labels = whole(iter(data.test))
    assert labels.tolist() == [0, 0, 1, 1, 2, 2] and len(data.train) == 6
    seen, _ = whole(data.train.epoch(0))
    for pixels in whole(iter(data.test))[0]:
        assert not (seen == pixels).flatten(1).all(1).any()
    again = build_data(recipe(train=str(train), split=0.2))
    assert torch.equal(whole(iter(again.test))[0], whole(iter(data.test))[0])
    kept, held = apart([f"{i}" for i in range(10)], 0.3, "numbers")  # no two alike: of them all
    assert len(held) == 3 and sorted(kept + held) == list(range(10))
    held_out = build_data(recipe(train=str(train), split=0.2, hold_out=4))
    assert held_out.valid is not None and len(whole(iter(held_out.valid))[1]) == 4 and len(held_out.train) == 5


def table(path: Path, rows: list[dict[str, object]]) -> str:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def test_tables_of_paths(tmp_path: Path) -> None:
    """Each task's targets, out of a table beside the pictures."""
    folder(tmp_path / "pictures", 4)
    files = [f"pictures/{name}/{i}.jpg" for name in CLASSES for i in (0, 2)]
    masks = []
    for i in range(len(files)):
        mask = np.full((20, 20), i, np.uint8)
        Image.fromarray(mask).save(tmp_path / f"mask-{i}.png")
        masks.append(f"mask-{i}.png")
    columns: dict[str, list[Any]] = {
        "label": ["cat", "cat", "dog", "dog", "owl", "owl"],
        "tags": ["furry", "furry;small", "furry; loud", "loud", "small", ""],
        "weight": [1.5, 2, 3, 4, 5, 6.25],
        "height": [1, 1, 2, 2, 3, 3],
        "furry": [1, 1, 1, 1, 0, 0],
        "mask": masks,
    }
    rows: list[dict[str, object]] = [
        {"file": name, **{key: values[i] for key, values in columns.items()}} for i, name in enumerate(files)
    ]
    path = table(tmp_path / "all.csv", rows)

    def targets(task: str, label: Any) -> tuple[Data, Tensor]:
        data = build_data(recipe(task, train=path, test=path, image="file", label=label))
        inputs, found = whole(iter(data.test))
        assert inputs.shape == (6, 3, 20, 20)
        return data, found

    assert targets("classification", "label")[1].tolist() == [0, 0, 1, 1, 2, 2]
    data, found = targets("multi-label", "tags")
    assert data.encoder.classes == ("furry", "loud", "small")
    assert found.tolist() == [[1, 0, 0], [1, 0, 1], [1, 1, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]
    data, found = targets("multi-label", ["furry", "furry"])
    assert found.shape == (6, 2)
    assert targets("regression", "weight")[1].tolist() == columns["weight"]
    data, found = targets("regression", ["weight", "height"])
    assert found[1].tolist() == [2, 1] and data.encoder.classes == ("weight", "height")
    _, found = targets("segmentation", "mask")
    assert found.shape == (6, 20, 20) and found[:, 3, 3].tolist() == list(range(6))


def test_without_labels(tmp_path: Path) -> None:
    """Pictures that are all in one folder are enough for a task whose targets are the dense model's outputs."""
    folder(tmp_path / "some", names=("here",))
    path = str(tmp_path / "some/here")
    data = build_data(recipe("embedding", train=path, split=0.34))
    assert len(whole(data.train.epoch(0))[0]) == 4 and len(whole(iter(data.test))[0]) == 2


@needs_torchvision
def test_pictures_of_several_sizes_are_cut_to_one(tmp_path: Path) -> None:
    train = folder(tmp_path / "train", 6, sizes=9)
    with pytest.raises(DataError, match=r"\d.jpg: \d+ x \d+ pixels, and .*\d.jpg \d+ x \d+; set data.size"):
        whole(iter(build_data(recipe(train=str(train), test=str(train))).test))
    data = build_data(recipe(train=str(train), test=str(train), size=16, resize=18))
    pixels, _ = whole(iter(data.test))
    assert pixels.shape == (18, 3, 16, 16)
    with Image.open(train / "cat/0.jpg") as first:  # 20 x 20
        middle = torch.from_numpy(np.array(first.resize((18, 18), Image.Resampling.BILINEAR)))[1:17, 1:17]
    assert (pixels[0] * 255 - middle.permute(2, 0, 1)).abs().max() <= 2  # torchvision rounds otherwise than PIL
    wide = build_data(recipe(train=str(train), test=str(train), size=[12, 24]))
    assert whole(iter(wide.test))[0].shape == (18, 3, 12, 24)
    grey = build_data(recipe(train=str(train), test=str(train), size=16, channels=1))
    assert grey.example[0].shape == (2, 1, 16, 16)  # type: ignore[index]


@needs_torchvision
def test_what_is_drawn_does_not_hang_on_the_number_of_processes(tmp_path: Path) -> None:
    train = folder(tmp_path / "train", 6, sizes=9)
    changes: dict[str, Any] = {
        "size": 16,
        "augment": ["random-resized-crop:0.3", "flip", "rand-augment:9", "pad-crop:2", "mixup:0.4"],
    }
    state = torch.get_rng_state()
    passes = [
        [
            whole(build_data(recipe(train=str(train), test=str(train), workers=workers, **changes)).train.epoch(e))
            for e in (0, 1)
        ]
        for workers in (0, 2)
    ]
    assert torch.equal(torch.get_rng_state(), state)  # nothing is drawn from the model's own generator
    for one, other in zip(*passes, strict=True):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
    (first, shares), (second, _) = passes[0]
    assert not torch.equal(first, second) and shares.shape == (16, 3)
    assert torch.allclose(shares.sum(1), torch.ones(16)) and ((shares > 0).sum(1) > 1).any()


@needs_torchvision
def test_masks_are_turned_as_their_pictures_are(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = []
    for i in range(8):
        grey = np.repeat(np.random.default_rng(i).integers(0, 2, (10, 10, 1)), 2, 0).repeat(2, 1)  # blocks of 2 pixels
        Image.fromarray((255 * grey.repeat(3, 2)).astype(np.uint8)).save(tmp_path / f"{i}.png")
        Image.fromarray(grey[..., 0].astype(np.uint8)).save(tmp_path / f"{i}-mask.png")
        rows.append({"image": f"{i}.png", "mask": f"{i}-mask.png"})
    path = table(tmp_path / "all.csv", rows)
    data = build_data(recipe("segmentation", train=path, test=path, image="image", augment=["flip", "pad-crop:4"]))
    pixels, masks = whole(data.train.epoch(3))
    assert torch.equal(pixels[:, 0].round().long(), masks) and masks.dtype == torch.int64
    plain, _ = whole(iter(data.test))
    assert not any((pixels[0] == other).all() for other in plain)


def test_splits_of_a_dataset(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    folder(tmp_path / "photos")
    features = datasets.Features({"img": datasets.Image(), "fine": datasets.ClassLabel(names=list(CLASSES))})
    files = sorted(str(path) for path in (tmp_path / "photos").rglob("*.jpg"))
    labels = [CLASSES.index(Path(file).relative_to(tmp_path / "photos").parts[0]) for file in files]
    split = datasets.Dataset.from_dict({"img": files, "fine": labels}, features=features)
    datasets.DatasetDict({"train": split, "test": split}).save_to_disk(tmp_path / "saved")
    given = {"dataset": str(tmp_path / "saved"), "train": "train", "test": "test", "image": "img", "label": "fine"}
    data = build_data(recipe(**given))
    pixels, found = whole(iter(data.test))
    assert data.encoder.classes == CLASSES and found.tolist() == labels and pixels.shape == (18, 3, 20, 20)
    with pytest.raises(DataError, match=r'no column "picture" \(data.image\); it has img, fine'):
        build_data(recipe(**{**given, "image": "picture"}))
    with pytest.raises(DataError, match=r"column fine is ClassLabel.*expected pictures: see data.image"):
        build_data(recipe(**{**given, "image": "fine"}))


# mistakes


def test_folders_that_are_none(tmp_path: Path) -> None:
    def failure(**data: Any) -> str:
        with pytest.raises(DataError) as error:
            found = build_data(recipe(**{"test": data["train"], **data}))
            whole(iter(found.test))
        assert "\n" not in str(error.value)
        return str(error.value)

    good = folder(tmp_path / "good")
    (tmp_path / "bare").mkdir()
    assert f"{tmp_path}/bare: no folders in it; expected one for each class" in failure(train=str(tmp_path / "bare"))
    for name in ("train", "val"):
        folder(tmp_path / "both" / name, 1)
    said = failure(train=str(tmp_path / "both"))
    assert "both: its folders are train, val, and no classes; set data.train and data.test to those folders" in said
    bad = folder(tmp_path / "bad")
    (bad / "yak").mkdir()
    (bad / "yak/notes.txt").write_text("none yet")
    assert "bad/yak: the folder of a class, and no picture in it; put some there, or remove" in failure(train=str(bad))
    (bad / "yak/notes.txt").unlink()
    (bad / "yak").rmdir()
    (bad / "dog/0.jpg").write_bytes((good / "dog/0.jpg").read_bytes()[:200])
    for workers in (0, 1):
        assert "bad/dog/0.jpg: not a readable picture (" in failure(train=str(good), test=str(bad), workers=workers)
    assert "leave data.image and data.label out" in failure(train=str(good), image="file")
    other = folder(tmp_path / "other", 2, names=("cat", "yak"))
    said = failure(train=str(good), test=str(other))
    assert f'yak/0.jpg: label "yak" is not one of cat, dog, owl: the classes of {good}' in said
    assert "data.mean: 2 values for pictures of 3 channels" in failure(train=str(good), mean=[0.1, 0.2])
    assert "no such file; set data.train and data.test to Parquet files, folders or tables" in failure(train="absent")


def test_tables_that_are_none(tmp_path: Path) -> None:
    folder(tmp_path / "here", 1)
    rows: list[dict[str, object]] = [{"file": f"here/{name}/0.jpg", "n": i, "m": "x"} for i, name in enumerate(CLASSES)]

    def failure(rows: list[dict[str, object]], task: str = "classification", **data: Any) -> str:
        path = table(tmp_path / "all.csv", rows)
        with pytest.raises(DataError) as error:
            whole(iter(build_data(recipe(task, **{"train": path, "test": path, "image": "file", **data})).test))
        return str(error.value)

    assert "columns are file, n, m; say which holds the label: data.label" in failure(rows)
    assert 'no column "k" (data.label); it has file, n, m' in failure(rows, label="k")
    assert "here/cat/0.jpg: 'x' is no number; see data.label" in failure(rows, "regression", label="m")
    assert "here/absent.jpg: no such picture" in failure([*rows, {"file": "here/absent.jpg", "n": 1}], label="n")
    assert "here/cat/0.jpg: its mask is of mode RGB; expected one number a pixel" in failure(
        rows, "segmentation", label="file"
    )
    assert "columns are n; say which holds the image: data.image" in failure([{"n": 1}], image=None, size=8)


def test_a_process_that_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os
    import signal

    good = folder(tmp_path / "good")
    data = build_data(recipe(train=str(good), test=str(good), workers=1))
    here = os.getpid()

    def dies(rows: FolderRows, row: int) -> Any:
        assert os.getpid() != here
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(FolderRows, "picture", dies)
    with pytest.raises(DataError, match=r"data.workers: a process that reads pictures died \(.*lower data.workers, or"):
        whole(iter(data.test))


def test_mixup_is_of_classes(tmp_path: Path) -> None:
    pytest.importorskip("torchvision.transforms.v2") if has_torchvision() else pytest.skip("no torchvision")
    folder(tmp_path / "here", 2)
    path = table(tmp_path / "all.csv", [{"file": f"here/{name}/0.jpg", "label": i} for i, name in enumerate(CLASSES)])
    with pytest.raises(DataError, match=r'mixup mixes classes, and data.task = "regression" has none'):
        build_data(recipe("regression", train=path, test=path, image="file", augment=["mixup"]))


def test_torchvision_that_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchvision.transforms", None)
    good = str(folder(tmp_path / "good"))
    assert len(whole(iter(build_data(recipe(train=good, test=good)).test))[1]) == 18  # not needed for one size
    for data, field in (({"size": 16}, "data.size"), ({"augment": ["flip"]}, "data.augment")):
        with pytest.raises(DataError, match=rf"{field}: needs torchvision; pip install 'sslprune\[vision\]'"):
            build_data(recipe(train=good, test=good, **data))


def test_the_names_of_the_classes_come_back(tmp_path: Path) -> None:
    good = str(folder(tmp_path / "good"))
    given = recipe(train=good, split=0.5)
    build_data(given).save(tmp_path / "tokenizer")
    encoder = reopen(given, tmp_path / "tokenizer", ("batch", 3, 20, 20))
    assert encoder.classes == CLASSES and encoder.task(task_for(given.data)).name == "classification"
    assert list(encoder.told("", np.array([[0.0, 9.0, 1.0]]))) == ["dog"]
    (tmp_path / "tokenizer/labels.json").write_text("{")
    with pytest.raises(RunError, match=r"labels.json: damaged; repack this run again"):
        reopen(given, tmp_path / "tokenizer", ("batch", 3, 20, 20))


def invoke(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@needs_torchvision
def test_a_folder_of_200_pictures_from_init_to_predict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No line of Python is written."""
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "photos", 100, sizes=5, names=("cat", "dog"))
    assert invoke("init", "sslprune.zoo:digits_cnn", "--out", "photos.toml").exit_code == 0
    written = Path("photos.toml").read_text()  # what a reader of it does next
    written = re.sub(r"^factory = \"my_data.*$", 'train = "photos"\nsplit = 0.2\nsize = 8', written, flags=re.M)
    Path("photos.toml").write_text(re.sub(r"^checkpoint", "# checkpoint", written, flags=re.M))
    values = {
        "model.arguments": "{width=8, num_classes=2}", "data.channels": 1, "data.batch_size": 32,
        "data.augment": '["flip"]',
        "schedule.dense": "1ep", "schedule.sparse": "2ep", "schedule.heal": "1ep", "lasso.decay": 4,
        "lasso.interval": 2, "bench.threads": "[1]", "gates.max_metric_drop": 100,
    }  # fmt: skip
    sets = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    looked = invoke("inspect", "photos.toml", *sets)
    assert looked.exit_code == 0 and "filters" in looked.output, looked.output
    ran = invoke("run", "photos.toml", *sets)
    assert ran.exit_code == 0, ran.output
    said = invoke("predict", "runs/photos", "photos/cat/0.jpg", "--json")
    assert said.exit_code == 0 and json.loads(said.output)[0]["dense"]["label"] in ("cat", "dog"), said.output
