"""What the shipped recipes find in place of their own: eight samples of each kind, and models of random weights."""

from __future__ import annotations

import json
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

RECIPES = Path(__file__).parents[1] / "recipes"
WORDS = "the film was a very long one of them and it is good bad dull fine".split()  # noqa: SIM905
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
Sets = list[str]
TINY = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24)
FEW = ("data.batch_size=4", "data.eval_batch_size=4")


def sets_for(recipe: str, folder: Path) -> Sets:
    """What the shipped recipe of that name is to be given; its files are written into ``folder``."""
    return MATERIAL[recipe](folder)


def folders(folder: Path) -> Sets:
    """Four pictures of each of two classes, twice: a folder for each class."""
    from PIL import Image

    for part in ("train", "test"):
        for number in range(8):
            file = folder / part / f"class{number % 2}" / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.random.default_rng(number).integers(0, 255, (36, 40, 3), np.uint8)).save(file)
    return [f"data.{part}={folder / part}" for part in ("train", "test")]


def on_parquet(folder: Path) -> Sets:
    """A ResNet of eight layers, and pictures of 32 x 32 in Parquet files of the Hugging Face image layout."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from scripts.fuzz_material import picture

    rows = [{"image": {"bytes": picture("RGB", 32, n), "path": None}, "label": n % 8} for n in range(8)]
    file = folder / "pictures.parquet"
    pq.write_table(pa.Table.from_pylist(rows), file)
    model = "model={ factory = 'sslprune.zoo:resnet_cifar', arguments = { depth = 8 } }"  # and no checkpoint
    return [model, f"data.train={file}", f"data.test={file}", *FEW]


def saved(folder: Path, name: str, **sizes: Any) -> str:
    """A Hugging Face directory of a model with random weights."""
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{name.partition('For')[0]}Config")(**sizes)
    getattr(transformers, name)(config).save_pretrained(folder / "model")
    return str(folder / "model")


def tokenized(path: str) -> None:
    """A tokenizer of whole words, into a model's directory."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(TOKENS)}, "[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(path)


def text(folder: Path, lines: int = 8) -> Path:
    """Sentences, one a line."""
    random = np.random.default_rng(0)
    file = folder / "text.txt"
    file.write_text("".join(" ".join(random.choice(WORDS, 9)) + "\n" for _ in range(lines)))
    return file


def on_pictures(folder: Path, **arguments: Any) -> Sets:
    """A library's model of two classes, in so far small as it lets itself be."""
    table = ", ".join(f"{name} = {value}" for name, value in {"num_classes": 2, **arguments}.items())
    sets = (f"model.arguments={{ {table} }}", "data.size=32", "data.workers=0")
    return [*folders(folder), *sets, *FEW]


def on_text(folder: Path, name: str, **sizes: Any) -> Sets:
    """A causal language model."""
    path = saved(folder, name, vocab_size=len(TOKENS), **TINY, **sizes)
    tokenized(path)
    file = text(folder)
    return [f"model.arguments.path={path}", f"data.train={file}", f"data.test={file}", "data.steps=8",
            "data.batch_size=2", "train.accumulate=1"]  # fmt: skip


def on_words(folder: Path) -> Sets:
    """A language model with its own vocabulary."""
    file = text(folder, 40)
    return [f"model.arguments={{ vocabulary = {len(set(WORDS)) + 1}, hidden = 8 }}", "data.steps=4",
            *(f"data.{part}={file}" for part in ("train", "valid", "test"))]  # fmt: skip


def on_sentences(folder: Path) -> Sets:
    path = saved(folder, "BertForSequenceClassification", vocab_size=len(TOKENS), **TINY)
    tokenized(path)
    rows = [(line, n % 2) for n, line in enumerate(text(folder).read_text().splitlines())]
    table = folder / "table.tsv"
    table.write_text("sentence\tlabel\n" + "".join(f"{line}\t{label}\n" for line, label in rows))
    layers = 'distill.modules=["*.layer.?"]'  # it has no tenth one
    return [f"model.arguments.path={path}", f"data.train={table}", f"data.test={table}", layers, *FEW]


def on_masks(folder: Path) -> Sets:
    """SegFormer, and a table of pictures with a mask each."""
    from PIL import Image

    path = saved(folder, "SegformerForSemanticSegmentation", num_labels=3, hidden_sizes=[8, 8, 16, 16],
                 depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=16)  # fmt: skip
    lines = ["image,mask"]
    for number in range(8):
        random = np.random.default_rng(number)
        Image.fromarray(random.integers(0, 255, (40, 40, 3), np.uint8)).save(folder / f"{number}.jpg")
        Image.fromarray(random.integers(0, 3, (40, 40), np.uint8)).save(folder / f"{number}-mask.png")
        lines.append(f"{number}.jpg,{number}-mask.png")
    table = folder / "table.csv"
    table.write_text("\n".join(lines) + "\n")
    return [f"model.arguments.path={path}", f"data.train={table}", f"data.test={table}", "data.size=32",
            "data.workers=0", *FEW]  # fmt: skip


def on_boxes(folder: Path) -> Sets:
    """YOLOS, and pictures with boxes as COCO has them; one has none."""
    from PIL import Image

    path = saved(folder, "YolosForObjectDetection", image_size=[32, 32], patch_size=8, num_detection_tokens=5,
                 num_labels=3, **TINY)  # fmt: skip
    for part in ("train", "val"):
        (folder / part).mkdir()
        pictures, boxes = [], []
        for n in range(8):
            Image.fromarray(np.full((30, 40, 3), 20 * n, np.uint8)).save(folder / part / f"{n}.jpg")
            pictures.append({"id": n, "file_name": f"{n}.jpg", "width": 40, "height": 30})
            boxes += [{"image_id": n, "bbox": [2, 3, 10 + n, 9], "category_id": n % 3}] if n else []
        (folder / f"{part}.json").write_text(json.dumps({"images": pictures, "annotations": boxes}))
    return [f"model.arguments.path={path}", f"data.arguments.root={folder}", "data.arguments.size=[32, 32]",
            "data.arguments.batch_size=4", "data.arguments.workers=0"]  # fmt: skip


def sound(file: Path, pitch: float, seconds: float = 0.25, rate: int = 16_000) -> None:
    """A tone."""
    file.parent.mkdir(parents=True, exist_ok=True)
    wave_ = np.sin(2 * np.pi * pitch * np.arange(int(seconds * rate)) / rate)
    with wave.open(str(file), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes((8000 * wave_).astype(np.int16).tobytes())


def on_speech(folder: Path) -> Sets:
    """Whisper, which hears a second, and recordings with their texts."""
    from transformers import WhisperFeatureExtractor

    path = saved(folder, "WhisperForConditionalGeneration", vocab_size=len(TOKENS), d_model=16, encoder_layers=1,
                 decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=24,
                 decoder_ffn_dim=24, num_mel_bins=10, max_source_positions=50, max_target_positions=16, pad_token_id=0,
                 bos_token_id=1, eos_token_id=2, decoder_start_token_id=3, suppress_tokens=None)  # fmt: skip
    tokenized(path)
    WhisperFeatureExtractor(feature_size=10, chunk_length=1).save_pretrained(path)
    for part in ("train", "test"):
        for n, line in enumerate(text(folder).read_text().splitlines()):
            sound(folder / part / f"{n}.wav", 200 + 20 * n)
            (folder / part / f"{n}.txt").write_text(line)
    return [f"model.arguments.path={path}", f"data.arguments.root={folder}", f"data.arguments.model={path}",
            "data.arguments.tokens=12", "data.workers=0", *FEW]  # fmt: skip


def on_voices(folder: Path) -> Sets:
    """Two voices, of four tones each; two of them are for the test."""
    for n in range(8):
        sound(folder / f"voice{n % 2}" / "words" / f"{n}.wav", 150 + 100 * (n % 2) + 5 * n)
    model = f"model={{ factory = '{RECIPES / 'voices.py'}:Encoder', arguments = {{ hidden = 8 }} }}"  # no checkpoint
    return [model, f"data.arguments.root={folder}", *FEW]


def on_tags(folder: Path) -> Sets:
    file = text(folder)
    return ["model.arguments.width=8", "model.arguments.hidden=8", "model.arguments.vocabulary=20",
            f"data.arguments={{ train = '{file}', test = '{file}', length = 9, vocabulary = 20 }}", *FEW]  # fmt: skip


MATERIAL: dict[str, Callable[[Path], Sets]] = {
    "resnet50-imagenet": lambda folder: on_pictures(folder, width_per_group=16),
    "mobilenetv3-imagenet": on_pictures,
    "convnext-imagenet": lambda folder: on_pictures(folder, depths=[1, 1, 1, 1], dims=[8, 8, 16, 16]),
    "deit-imagenet": lambda folder: on_pictures(folder, img_size=32, depth=1),
    "segformer-ade20k": on_masks,
    "yolos-coco": on_boxes,
    "bert-base": on_sentences,
    "llama": lambda folder: on_text(folder, "LlamaForCausalLM", num_key_value_heads=2),
    "mixtral": lambda folder: on_text(
        folder, "MixtralForCausalLM", num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2
    ),
    "whisper": on_speech,
    "resnet56-cifar10": on_parquet,
    "digits-segmentation": lambda folder: ["model.arguments.width=4"],
    "lstm-ptb": on_words,
    "voice-encoder": on_voices,
    "lstm-tagger": on_tags,
    "gru-tagger": on_tags,
}
