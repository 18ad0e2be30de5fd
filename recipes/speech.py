"""Recordings with their texts, for models that write down what they hear."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import AutoTokenizer, WhisperConfig, WhisperFeatureExtractor


def transcripts(root: str, model: str, tokens: int = 64) -> tuple[Dataset, Dataset]:
    """``root``/train/*.wav (16 kHz, 16 bits) with the text of each in a .txt beside it; the same in ``root``/test."""
    return Transcripts(Path(root, "train"), model, tokens), Transcripts(Path(root, "test"), model, tokens)


class Transcripts(Dataset):
    """A recording's spectrogram and what is written so far, and the next token at each of ``tokens`` places."""

    def __init__(self, folder: Path, model: str, tokens: int) -> None:
        self.files, self.tokens = sorted(folder.glob("*.wav")), tokens
        self.hears, self.writes = WhisperFeatureExtractor.from_pretrained(model), AutoTokenizer.from_pretrained(model)
        self.start = WhisperConfig.from_pretrained(model).decoder_start_token_id

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        with wave.open(str(self.files[number])) as file:
            sound = np.frombuffer(file.readframes(file.getnframes()), np.int16) / 32768
        features = self.hears(sound, sampling_rate=self.hears.sampling_rate, return_tensors="pt").input_features[0]
        text = self.files[number].with_suffix(".txt").read_text(encoding="utf-8").strip()
        ids = torch.tensor(self.writes(text).input_ids[: self.tokens])
        labels = torch.full((self.tokens,), -100)
        labels[: len(ids)] = ids
        written = torch.full((self.tokens,), self.start)
        written[1 : len(ids)] = ids[:-1]
        return {"input_features": features, "decoder_input_ids": written}, labels
