"""Statistics at the end of a run are those that were taken anew, also of a model that shrank on its way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sslprune.data import build_data
from sslprune.models.build import load_checkpoint
from sslprune.train.checkpoint import TrainingFiles
from sslprune.train.recalibrate import recalibrate
from sslprune.train.training import train
from tests.test_processes import net, recipe

STEPS = {"dense": "4it", "sparse": "24it", "heal": "4it"}


@pytest.mark.parametrize("shrink", ["5it", "never"])
def test_statistics_are_taken_anew_at_the_end(shrink: str, tmp_path: Path) -> None:
    values = recipe(train={"recalibrate": "3it"}, schedule={**STEPS, "shrink": shrink})
    files = TrainingFiles(tmp_path)
    train(values, files)
    masked, trained = load_file(files.masked), load_checkpoint(files.checkpoint)["model"]
    means = [name for name in masked if name.endswith("running_mean")]
    assert any(not torch.equal(masked[name], trained[name]) for name in means)
    model = net()
    model.load_state_dict(masked)
    recalibrate(model, build_data(values).train, 3)
    for name in means:
        torch.testing.assert_close(masked[name], model.state_dict()[name], rtol=1e-4, atol=1e-5)
