"""Recordings of voices, a folder for each, and an LSTM that makes a vector of what it hears.

python recipes/voices.py train ROOT              an encoder that tells the voices apart: voice-encoder.safetensors
sslprune run recipes/voice-encoder.toml          a smaller one, by the vectors of that one alone
python recipes/voices.py ask ROOT RUN            how many test clips have the vector of their own voice nearest
"""

from __future__ import annotations

import sys
import wave
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import sslprune

BANDS, EVERY = 40, 5  # of the spectrum; each fifth clip is for the test


def clips(root: str, labelled: bool = False, seconds: float = 1.0) -> tuple[TensorDataset, TensorDataset]:
    """The start of every ``root``/<voice>/**/*.wav (16 bits, one channel), (clips, steps, bands); voices if asked."""
    files = [file for file in sorted(Path(root).glob("*/**/*.wav")) if "silence" not in file.parts]
    voices = sorted({file.relative_to(root).parts[0] for file in files})
    heard = torch.stack([spectrum(file, seconds) for file in files])
    whose = torch.tensor([voices.index(file.relative_to(root).parts[0]) for file in files])
    tested = torch.arange(len(files)) % EVERY == 0
    return tuple(TensorDataset(heard[part], *([whose[part]] if labelled else [])) for part in (~tested, tested))


def spectrum(file: Path, seconds: float) -> Tensor:
    """The logarithm of a recording's power in ``BANDS`` bands, a hundred times a second: (steps, bands)."""
    with wave.open(str(file)) as recording:
        rate = recording.getframerate()
        sound = np.frombuffer(recording.readframes(int(seconds * rate)), np.int16) / 32768
    sound = torch.tensor(np.pad(sound, (0, int(seconds * rate) - len(sound))), dtype=torch.float32)
    window = torch.hann_window(rate // 40)
    power = torch.stft(sound, rate // 40, rate // 100, window=window, return_complex=True).abs().square()
    return F.adaptive_avg_pool1d(power.T, BANDS).add(1e-5).log() / 4 + 1


class Encoder(nn.Module):
    """(batch, steps, bands) to vectors of length 1, (batch, size): the mean of what two LSTM layers say by the step."""

    def __init__(self, hidden: int = 128, size: int = 64) -> None:
        super().__init__()
        self.lstm = nn.LSTM(BANDS, hidden, num_layers=2, batch_first=True)
        self.project = nn.Linear(hidden, size)

    def forward(self, heard: Tensor) -> Tensor:
        steps, _ = self.lstm(heard)
        return F.normalize(self.project(steps.mean(1)), dim=1)


def trained(root: str, epochs: int = 8) -> Encoder:
    """An encoder that tells the voices apart: it learns with a linear layer on top, which is thrown away."""
    torch.manual_seed(0)
    heard, whose = clips(root, labelled=True)[0].tensors
    encoder, head = Encoder(), nn.Linear(64, int(whose.max()) + 1)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=2e-3)
    for _ in range(epochs):
        for picked in torch.randperm(len(heard)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(10 * head(encoder(heard[picked])), whose[picked]).backward()
            optimizer.step()
    return encoder


@torch.no_grad()
def nearest(encoder: nn.Module, root: str) -> float:
    """Percent of the test clips whose vector is nearest to the mean of the training vectors of their own voice."""
    (known, names), (asked, true) = (part.tensors for part in clips(root, labelled=True))
    vectors = encoder(known)
    means = torch.stack([vectors[names == voice].mean(0) for voice in names.unique()])
    return 100 * float(((encoder(asked) @ F.normalize(means, dim=1).T).argmax(1) == true).float().mean())


def main() -> None:
    task, root, *run = sys.argv[1:]
    if task == "train":
        encoder = trained(root)
        save_file(encoder.state_dict(), "voice-encoder.safetensors")
        print(f"voice-encoder.safetensors: {nearest(encoder.eval(), root):.2f} % of the test clips")
        return
    dense = Encoder().eval()
    dense.load_state_dict(load_file(Path(run[0], "train", "dense.safetensors")))
    for name, encoder in (("dense", dense), ("repacked", sslprune.load(run[0]))):
        print(f"{name:9} {nearest(encoder, root):.2f} % of the test clips have their own voice nearest")


if __name__ == "__main__":
    main()
