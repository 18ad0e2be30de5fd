"""Batches are decided by seed and epoch; bad data are named."""

import io
import json
from typing import Any

import numpy
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from sslprune.data import Batches, Data, Encoder, Images, build_data, digits, read_images, reopen
from sslprune.data.batches import Source
from sslprune.data.images import open_picture
from sslprune.data.own import LoaderBatches
from sslprune.errors import DataError
from sslprune.recipe import Recipe, parse_recipe
from sslprune.values.inputs import tensors_in
from sslprune.values.tasks import Task

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
Image = pytest.importorskip("PIL.Image")


DIGITS = {"factory": "sslprune.data:digits"}


def recipe(**data) -> Recipe:
    return parse_recipe(
        {
            "model": {"factory": "sslprune.zoo:digits_cnn"},
            "data": data,
            "prune": [{"kind": "filters"}],
            "budget": {"macs": 0.5},
            "schedule": {"sparse": "1ep", "heal": "1ep"},
        }
    )


def png(width: int = 6, height: int = 4, mode: str = "RGB", value: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (width, height), value if mode == "L" else (value, 0, 255)).save(file, "png")
    return file.getvalue()


def write(path, pictures, labels, names=(), image="image", label="label"):
    rows = pyarrow.array(
        [{"bytes": b, "path": None} for b in pictures], pyarrow.struct([("bytes", "binary"), ("path", "string")])
    )
    features = {label: {"names": list(names), "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})} if names else None
    table = pyarrow.table({image: rows, label: pyarrow.array(labels)})
    parquet.write_table(table.replace_schema_metadata(metadata), path)
    return str(path)


def test_digits():
    train, test = digits()
    assert train.pixels.shape == (1437, 1, 8, 8) and test.pixels.shape == (360, 1, 8, 8)
    assert int(train.pixels.max()) == 255 and set(test.labels.tolist()) == set(range(10))


def test_passes_are_decided_by_seed_and_epoch():
    data = build_data(recipe(factory="sslprune.data:digits", augment=["pad-crop:1", "flip"], batch_size=500))
    first, again, later = (list(data.train.epoch(i)) for i in (3, 3, 4))
    assert len(first) == len(data.train) == 2  # the last, smaller batch is left out
    assert all(all(map(torch.equal, tensors_in(a), tensors_in(b))) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0][1], later[0][1])
    assert sum(len(labels) for _, labels in data.test) == 360
    assert tensors_in(data.example)[0].shape == (2, 1, 8, 8)


def test_augmentation_moves_and_mirrors():
    picture = torch.zeros(1, 1, 3, 3, dtype=torch.uint8)
    picture[0, 0, 1, 0] = 255
    images = Images(picture.repeat(400, 1, 1, 1), torch.zeros(400, dtype=torch.int64), 1)
    batches = build_data(recipe(factory="sslprune.data:digits", augment=["pad-crop:1", "flip"], batch_size=400)).train
    assert isinstance(batches, Batches)
    batches.images = images
    inputs, _ = next(batches.epoch(0))
    pixels = tensors_in(inputs)[0]
    seen = pixels.mean(0)[0]
    assert ((pixels == 0) | (pixels == 1)).all() and pixels.flatten(1).sum(1).max() == 1
    assert (seen > 0).all()  # up and down by one; left by one or mirrored: every pixel is reached
    assert seen[1, 0] == pytest.approx(1 / 3 * 1 / 3 * 1 / 2, abs=0.05)  # centred on both sides, not mirrored


def test_held_out_images_are_not_trained_on():
    def images(source: Source | None) -> Images:
        assert isinstance(source, Batches)
        return source.images

    plain, held = (build_data(recipe(**DIGITS, hold_out=count)) for count in (0, 100))
    assert plain.valid is None
    kept, out = images(held.train), images(held.valid)
    assert len(out) == 100 and len(kept) == len(images(plain.train)) - 100
    both = torch.cat([kept.pixels, out.pixels]).flatten(1)
    everything = images(plain.train).pixels.flatten(1)
    assert torch.equal(both.double().sum(0), everything.double().sum(0))  # every image once, in one of the two
    assert torch.equal(images(build_data(recipe(**DIGITS, hold_out=100)).valid).pixels, out.pixels)
    with pytest.raises(DataError, match=r"data\.hold_out: 9,999 of the 1,437 samples"):
        len(build_data(recipe(**DIGITS, hold_out=9999)).train)


def test_normalisation(tmp_path):
    path = write(tmp_path / "a.parquet", [png(value=51)] * 3, [0, 1, 1])
    data = build_data(recipe(train=path, test=path, mean=[0.2, 0.5, 0.5], std=[0.1, 1.0, 0.25]))
    pixels = tensors_in(data.example)[0]
    assert pixels.shape == (2, 3, 4, 6)
    torch.testing.assert_close(pixels[0, :, 0, 0], torch.tensor([0.0, -0.5, 2.0]))


def test_layouts(tmp_path):
    grey = read_images(write(tmp_path / "g.parquet", [png(mode="L")] * 2, [0, 4], image="img", label="labels"))
    assert grey.pixels.shape == (2, 1, 4, 6) and grey.num_classes == 5
    named = read_images(write(tmp_path / "n.parquet", [png()] * 2, [0, 1], names=["cat", "dog", "owl"]))
    assert named.num_classes == 3


def test_bad_files(tmp_path):
    good = write(tmp_path / "good.parquet", [png()] * 2, [0, 1])

    def failure(path) -> str:
        with pytest.raises(DataError) as error:
            data = build_data(recipe(train=good, test=str(path)))
            len(data.test)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "no such file" in failure(tmp_path / "absent.parquet")
    assert f"{tmp_path}: no folders in it; expected one for each class" in failure(tmp_path)
    (tmp_path / "cat.PNG").write_bytes(png())
    assert "cat.PNG: one picture; pictures are read from a folder" in failure(tmp_path / "cat.PNG")
    huge = failure(write(tmp_path / "huge.parquet", [png()] * 2, [0, 1000000000]))
    assert huge.endswith("huge.parquet: label 1000000000; expected labels from 0 to 999999 at most")
    flat = pyarrow.table({"image": pyarrow.array([{"path": "a.png"}]), "label": [0]})
    parquet.write_table(flat, tmp_path / "flat.parquet")
    assert "flat.parquet: not a readable Parquet file of images" in failure(tmp_path / "flat.parquet")
    twice = pyarrow.Table.from_arrays([pyarrow.array([0]), pyarrow.array([1])], names=["label", "label"])
    parquet.write_table(twice, tmp_path / "twice.parquet")
    assert 'column "label" stands there twice' in failure(tmp_path / "twice.parquet")
    (tmp_path / "text.parquet").write_text("not parquet")
    assert "not a readable Parquet file" in failure(tmp_path / "text.parquet")
    assert "empty" in failure(write(tmp_path / "empty.parquet", [], pyarrow.array([], "int64")))
    assert "columns are picture: struct" in failure(write(tmp_path / "c.parquet", [png()], [0], image="picture"))
    assert "column label is string" in failure(write(tmp_path / "s.parquet", [png()], ["cat"]))
    assert "row 1 is 4 x 7 x 3" in failure(write(tmp_path / "size.parquet", [png(), png(7)], [0, 1]))
    assert "row 1 is not an image" in failure(write(tmp_path / "damaged.parquet", [png(), png()[:40]], [0, 1]))
    assert "label 3 is out of range" in failure(write(tmp_path / "l.parquet", [png()], [3], names=["cat", "dog"]))
    assert "label -1 is out of range" in failure(write(tmp_path / "m.parquet", [png(), png()], [-1, 0]))


def test_wrong_channels():
    data = build_data(recipe(factory="sslprune.data:digits", mean=[0.1, 0.2, 0.3]))
    with pytest.raises(DataError, match=r"data\.mean: 3 values for digits, test of 1 channels"):
        _ = data.example


def loaders(size: int = 10):
    rows = torch.utils.data.TensorDataset(torch.randn(size, 4), torch.arange(size))
    return torch.utils.data.DataLoader(rows, 5, shuffle=True), torch.utils.data.DataLoader(rows, 5)


def test_loaders_of_a_person(tmp_path):
    data = build_data(recipe(factory=f"{__file__}:loaders"))
    assert isinstance(data, Data) and len(data.train) == 2
    torch.manual_seed(5)
    first = [targets.tolist() for _, targets in data.train.epoch(1)]
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))  # the loader's draws are not the model's
    assert [targets.tolist() for _, targets in data.train.epoch(1)] == first
    assert [targets.tolist() for _, targets in data.train.epoch(2)] != first
    (inputs, targets) = next(iter(data.test))
    assert isinstance(inputs, tuple) and inputs[0].shape == (5, 4) and targets.tolist() == [0, 1, 2, 3, 4]


def test_a_picture_is_encoded_as_its_batches_are(tmp_path):
    path = write(tmp_path / "a.parquet", [png(value=51)] * 3, [0, 1, 1])
    made = recipe(train=path, test=path, mean=[0.2, 0.5, 0.5], std=[0.1, 1.0, 0.25])
    (tmp_path / "one.png").write_bytes(png(value=51))
    (tmp_path / "large.png").write_bytes(png(width=12, height=8, value=51))
    data = build_data(made)
    whole = tensors_in(data.example)[0][:1]
    for encoder in (data, reopen(made, tmp_path, ("batch", 3, 4, 6))):
        for name in ("one", "large"):
            [pixels] = tensors_in(encoder.encode(str(tmp_path / f"{name}.png")))
            torch.testing.assert_close(pixels, whole)
    [free] = tensors_in(reopen(made, tmp_path, ("batch", 3, "h", "w")).encode(str(tmp_path / "large.png")))
    assert free.shape == (1, 3, 8, 12)
    with pytest.raises(DataError, match=r"none.png: no such picture"):
        data.encode(str(tmp_path / "none.png"))
    assert data.encoder.told("x", numpy.log([[0.2, 0.5, 0.3]])) == {"1": pytest.approx(0.5)}


class Reads(Encoder):
    classes = ("even", "odd")

    def encode(self, sample):
        return (torch.tensor([[float(word) for word in sample.split()]]),)


def whole_data() -> Data:
    made = build_data(recipe(factory=f"{__file__}:loaders"))
    return Data(made.train, made.test, encoder=Reads())


def test_a_factory_may_say_how_a_sample_is_read(tmp_path):
    numbered = build_data(recipe(factory=f"{__file__}:loaders"))
    with pytest.raises(DataError, match=r"data\.factory returns loaders or datasets; name a sample by its number in"):
        numbered.encode("1 2 3 4")
    rows = torch.cat([tensors_in(inputs)[0] for inputs, _ in numbered.test])
    for number in (1, len(rows) - 1):
        assert torch.equal(tensors_in(numbered.encode(str(number)))[0], rows[number : number + 1])
    with pytest.raises(DataError, match=f"the test data have {len(rows)} samples, from 0 to {len(rows) - 1}"):
        numbered.encode(str(len(rows)))
    made = recipe(factory=f"{__file__}:whole_data")
    for encoder in (build_data(made), reopen(made, tmp_path, ("batch", 4))):
        assert tensors_in(encoder.encode("1 2 3 4"))[0].tolist() == [[1.0, 2.0, 3.0, 4.0]]
    told = reopen(made, tmp_path, ("batch", 4)).told("1 2 3 4", numpy.log([[0.25, 0.75]]))
    assert told == {"odd": pytest.approx(0.75)}


@pytest.mark.parametrize(
    ("factory", "data", "message"),
    [
        ("loaders", {"mean": [0.5]}, r"data\.mean: .*:loaders returns loaders, which have their own; leave it out"),
        ("loaders", {"eval_batch_size": 9}, r"data\.eval_batch_size: .* returns loaders, which have their own"),
        ("whole_data", {"max_length": 9}, r"data\.max_length: .* returns a Data, which has its own; leave it out"),
        ("whole_data", {"metrics": ["f1"]}, r"data\.metrics: .* returns a Data"),
        ("digits", {"max_length": 9}, r"data\.max_length: .* returns Images, which have one size; leave it out"),
    ],
)
def test_fields_that_a_factory_does_not_read(factory, data, message):
    with pytest.raises(DataError, match=message):
        build_data(recipe(factory=f"{__file__}:{factory}", **data))


PIXELS = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ((PIXELS,), r"a batch has 1 parts; expected \(inputs, targets\), with several"),
        ({"x": PIXELS}, 'a batch is a dict of x; expected its targets under "labels", or say their key: data.label'),
        (PIXELS, "a batch is a Tensor; expected"),
        ((PIXELS, [0, 1]), "targets of type list; expected tensors"),
        (((PIXELS, "name"), torch.tensor([0, 1])), "inputs of type str; expected tensors"),
        (({"x": PIXELS, "mask": None}, torch.tensor([0, 1])), "inputs of type NoneType; expected tensors"),
        (
            (torch.nn.utils.rnn.pack_sequence([PIXELS]), torch.tensor([0])),
            "inputs are a PackedSequence; expected tensors: see pad_packed_sequence",
        ),
    ],
)
def test_batches_that_are_none(item, message):
    with pytest.raises(DataError, match=message):
        next(iter(LoaderBatches([item], torch.device("cpu"), None)))


@pytest.mark.parametrize("kind", [torch.int32, torch.int16, torch.uint8, torch.bool])
def test_classes_of_any_width(kind):
    _, targets = next(iter(LoaderBatches([(PIXELS, torch.tensor([0, 1], dtype=kind))], torch.device("cpu"), None)))
    assert targets.dtype == torch.int64 and targets.tolist() == [0, 1]
    for given in (targets, torch.tensor([0, 1], dtype=kind)):  # a Data of one's own may not cast them
        Task().check(torch.zeros(2, 2), given)
        assert Task().loss(torch.zeros(2, 2), given).item() == pytest.approx(0.6931, abs=1e-4)
        scores = Task().scores()
        scores.add(torch.tensor([[1.0, 0.0]] * 2), given)
        assert scores.figures() == {"accuracy": 50.0}


def test_targets_that_are_no_classes():
    with pytest.raises(DataError, match="the targets are float32; expected int64, the number of a class each"):
        Task().check(torch.zeros(2, 2), torch.tensor([0.0, 1.0]))
    for kind in (torch.complex64, torch.int64):
        with pytest.raises(DataError, match=r"the model gives (complex|int)64; expected floating-point numbers"):
            Task().check(torch.zeros(2, 2, dtype=kind), torch.tensor([0, 1]))
    with pytest.raises(DataError, match=r"label 255 is out of range: the model has 3 classes; .* give -100 where 255"):
        Task().check(torch.zeros(1, 3, 2, 2), torch.tensor([[[0, 1], [2, 255]]]))
    Task().check(torch.zeros(1, 3, 2, 2), torch.tensor([[[0, 1], [2, -100]]]))


def test_two_samples_whatever_the_batch(tmp_path):
    path = write(tmp_path / "a.parquet", [png(value=i) for i in range(3)], [0, 1, 1])
    small, large = (build_data(recipe(train=path, test=path, eval_batch_size=size)) for size in (1, 2))
    assert torch.equal(tensors_in(small.example)[0], tensors_in(large.example)[0])
    rows = torch.arange(12.0).view(3, 4)
    lone = Data(Rows(rows, 1), Rows(rows, 1))
    assert torch.equal(tensors_in(lone.example)[0], rows[:2])
    with pytest.raises(DataError, match="the test data hold one sample; expected at least two"):
        _ = Data(Rows(rows, 1), Rows(rows[:1], 1)).example
    with pytest.raises(DataError, match=r"one sample a batch, of shapes that differ \(\(1, 4\) and \(1, 3\)\)"):
        _ = Data(Rows(rows, 1), Rows(rows, 1, shrinking=True)).example


class Rows:
    """Batches of the rows of a tensor."""

    def __init__(self, rows, size, shrinking=False):
        self.rows, self.size, self.shrinking = rows, size, shrinking

    def __len__(self):
        return -(-len(self.rows) // self.size)

    def __iter__(self):
        return self.epoch(0)

    def epoch(self, epoch):
        for i, batch in enumerate(self.rows.split(self.size)):
            yield (batch[:, : batch.shape[1] - i * self.shrinking],), torch.zeros(len(batch), dtype=torch.int64)


def test_damaged_files_are_one_line(tmp_path):
    """Bytes changed and cut at random: read, or refused in one line that names the file."""
    random = numpy.random.default_rng(0)
    whole = tmp_path / "whole.parquet"
    write(whole, [png(value=i) for i in range(4)], [0, 1, 2, 3], names=list("abcd"))
    refused = 0
    for i in range(150):
        contents = bytearray(whole.read_bytes()[: None if i % 3 else random.integers(whole.stat().st_size)])
        for place in random.integers(max(1, len(contents)), size=1 + i % 5):
            contents[place : place + 1] = random.bytes(1)
        path = tmp_path / f"{i}.parquet"
        path.write_bytes(contents)
        try:
            read_images(path)
        except DataError as error:
            refused += 1
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
    assert refused > 75


def test_a_picture_that_its_codec_gives_up_on(tmp_path):
    """A PNG with a broken chunk makes pillow raise a SyntaxError."""
    broken = bytearray(png())
    broken[broken.index(b"IDAT") - 4 : broken.index(b"IDAT")] = b"\x00\x00\x00\x01"
    (tmp_path / "broken.png").write_bytes(broken)
    with pytest.raises(DataError, match=r"broken.png: not a readable picture"):
        open_picture(str(tmp_path / "broken.png"), grey=False, size=None)
    with pytest.raises(DataError, match="row 0 is not an image"):
        read_images(write(tmp_path / "b.parquet", [bytes(broken)], [0]))


class Ending(Dataset[Any]):
    """Says that it has six samples, and stops at the fourth."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if index > 3:
            raise StopIteration
        return torch.zeros(3), 0


def test_a_stop_iteration_in_a_dataset_is_not_the_end_of_the_data() -> None:
    batches = LoaderBatches(DataLoader(Ending(), batch_size=2), torch.device("cpu"), None)
    with pytest.raises(DataError, match="ends after 2 of 3 batches; a StopIteration"):
        list(batches)


def test_a_test_picture_of_a_factory_has_a_number() -> None:
    values = {
        "model": {"factory": "sslprune.zoo:digits_cnn"},
        "data": {"factory": "sslprune.data:digits"},
        "prune": [{"kind": "filters"}],
        "budget": {"macs": 0.5},
        "schedule": {"sparse": "1ep", "heal": "1ep"},
    }
    data = build_data(parse_recipe(values))
    (pictures,) = tensors_in(next(iter(data.test))[0])
    (seventh,) = tensors_in(data.encoder.encode("7"))
    assert torch.equal(seventh, pictures[7:8])
    with pytest.raises(DataError, match="999: the test data have 360 samples, from 0 to 359"):
        data.encoder.encode("999")
