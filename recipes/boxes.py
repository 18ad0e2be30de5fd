"""Pictures with boxes, as COCO writes them down, for detectors that return their own loss."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import sslprune

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def coco(root: str, size: list[int], batch_size: int, workers: int = 0) -> tuple[DataLoader, DataLoader]:
    """``root``/train/*.jpg with ``root``/train.json, and val. Classes keep the numbers that the file gives them."""
    made = [Boxes(Path(root, part), Path(root, f"{part}.json"), size) for part in ("train", "val")]
    return tuple(
        DataLoader(part, batch_size, shuffle=part is made[0], num_workers=workers, collate_fn=together) for part in made
    )


class Boxes(Dataset):
    """A picture (3, height, width) of one size, and {class_labels, boxes}: centre, width, height, as shares of it."""

    def __init__(self, folder: Path, annotations: Path, size: list[int]) -> None:
        said = json.loads(annotations.read_text(encoding="utf-8"))
        self.folder, self.size, self.pictures = folder, size, said["images"]
        self.boxes: dict[int, list[dict]] = {}
        for box in said["annotations"]:
            if not box.get("iscrowd"):
                self.boxes.setdefault(box["image_id"], []).append(box)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, number: int) -> tuple[Tensor, dict[str, Tensor]]:
        about = self.pictures[number]
        picture = Image.open(self.folder / about["file_name"]).convert("RGB").resize(self.size[::-1])
        pixels = (np.asarray(picture, np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)
        found = self.boxes.get(about["id"], [])
        corners = torch.tensor([box["bbox"] for box in found], dtype=torch.float32).reshape(-1, 4)  # x, y, w, h: pixels
        corners[:, :2] += corners[:, 2:] / 2
        shares = corners / torch.tensor([about["width"], about["height"]] * 2)
        classes = torch.tensor([box["category_id"] for box in found], dtype=torch.int64)
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy()), {"class_labels": classes, "boxes": shares}


def together(samples: list[tuple[Tensor, dict[str, Tensor]]]) -> dict:
    """A batch: as many pictures, and a list of what is on each."""
    pictures, targets = zip(*samples, strict=True)
    return {"pixel_values": torch.stack(pictures), "labels": list(targets)}


def found() -> sslprune.Metric:
    """Percent of the boxes whose class and place one of the surest answers has, of as many as there are boxes."""
    return sslprune.Metric(_found, raw=True)


def _found(outputs: dict, targets: list[dict[str, Tensor]]) -> Tensor:
    hits = total = 0
    for logits, boxes, true in zip(outputs["logits"], outputs["pred_boxes"], targets, strict=True):
        score, said = logits.softmax(-1)[:, :-1].max(-1)  # the last class is: nothing here
        best = score.argsort(descending=True)[: len(true["boxes"])]
        near = _overlap(true["boxes"], boxes[best]) > 0.5
        hits += int((near & (true["class_labels"][:, None] == said[best])).any(1).sum())
        total += len(true["boxes"])
    return torch.tensor([100.0 * hits, total])


def _overlap(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union of every box of ``one`` (n, 4) with every one of ``other`` (m, 4): (n, m)."""
    (low, high), (left, right) = ((b[:, :2] - b[:, 2:] / 2, b[:, :2] + b[:, 2:] / 2) for b in (one, other))
    shared = (torch.minimum(high[:, None], right) - torch.maximum(low[:, None], left)).clamp(min=0).prod(-1)
    return shared / (one[:, 2:].prod(-1)[:, None] + other[:, 2:].prod(-1) - shared)
