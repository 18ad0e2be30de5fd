"""The callbacks land on their budget in other people's trainers; a resumed training ends as an uninterrupted one."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import sslprune.callbacks
from sslprune.callbacks.steering import Steering
from sslprune.errors import RecipeError, TrainingError
from sslprune.values.selection import Selection
from sslprune.zoo.digits_cnn import DigitsCNN


def equal(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def check_zeros(model: nn.Module, sparsity: Any) -> None:
    """What was chosen is exactly zero, nothing else is, and the budget of one half is met."""
    assert sparsity.controller.taken == 32 and sparsity.controller.num_steps == 24
    assert Selection.zeros(model, sparsity.axes) == sparsity.controller.selection
    assert 0.49 <= sparsity.fraction <= 0.5


def test_lightning(tmp_path):
    lightning = pytest.importorskip("lightning")
    from sslprune.callbacks import LightningSparsity

    class Net(lightning.LightningModule):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.net = DigitsCNN(8, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

        def training_step(self, batch, index):
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
            return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8)]

    torch.manual_seed(0)
    x = torch.randn(64, 1, 8, 8)
    batches = DataLoader(TensorDataset(x, torch.randint(0, 10, (64,))), 8)

    def fit(resume=None, sparse: float = 24, **settings):
        model = Net()
        callback = LightningSparsity("filters", macs=0.5, round_to=1, sparse=sparse, **settings)
        kept = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path, "{epoch}", every_n_epochs=3, save_top_k=-1)
        trainer = lightning.Trainer(
            max_epochs=8, callbacks=[callback, kept], accelerator="cpu", logger=False, accumulate_grad_batches=2,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(model, batches, ckpt_path=resume)
        return model.eval(), callback

    model, callback = fit()
    check_zeros(model, callback.steering.sparsity)
    small = callback.repack().eval()
    torch.testing.assert_close(small(x), model(x), rtol=1e-4, atol=1e-5)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    again, _ = fit(tmp_path / "epoch=2.ckpt")  # in the midst of the sparse phase
    assert equal(model, again)
    with pytest.raises(RecipeError, match='network: Net has no module "nett"; it has net'):
        fit(network="nett")
    with pytest.raises(RecipeError, match="sparse: 99 steps, but the training has 32"):
        fit(sparse=99)
    with pytest.raises(TrainingError, match="repack: this callback has seen no training yet"):
        LightningSparsity("filters", macs=0.5).repack()


class Sentences(torch.utils.data.Dataset):
    """Random tokens of three lengths, in batches of one length each."""

    def __len__(self) -> int:
        return 128

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        length, random = (6, 8, 11)[i // 4 % 3], torch.Generator().manual_seed(i)
        tokens = torch.randint(5, 50, (length,), generator=random)
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens.sum() % 2}


def test_hugging_face(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from sslprune.callbacks import SparseCallback

    def fit(resume: Path | None = None, callbacks: int = 1):
        torch.manual_seed(1)
        config = transformers.BertConfig(
            vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
            max_position_embeddings=16,
        )  # fmt: skip
        model = transformers.BertForSequenceClassification(config)
        callback = SparseCallback(
            ["heads", {"kind": "neurons", "include": ["*intermediate*"]}], macs=0.5, round_to=1, sparse=0.75
        )
        arguments = transformers.TrainingArguments(
            str(tmp_path), max_steps=32, per_device_train_batch_size=2, gradient_accumulation_steps=2, save_steps=10,
            learning_rate=1e-3, train_sampling_strategy="sequential", report_to=[], use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        trainer = transformers.Trainer(
            model, arguments, train_dataset=Sentences(), callbacks=[callback] if callbacks else None
        )
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
        return model.eval(), callback

    model, callback = fit()
    check_zeros(model, callback.steering.sparsity)
    small = callback.repack().eval()
    for i in (0, 4, 8):
        batch = {
            name: torch.stack([Sentences()[i][name], Sentences()[i + 1][name]])
            for name in ("input_ids", "attention_mask")
        }
        torch.testing.assert_close(small(**batch).logits, model(**batch).logits, rtol=1e-4, atol=1e-5)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    again, _ = fit(tmp_path / "checkpoint-10")  # in the midst of the sparse phase
    assert equal(model, again)
    fit(callbacks=0)
    with pytest.raises(TrainingError, match="the checkpoint of step 10 was saved without SparseCallback"):
        fit(tmp_path / "checkpoint-10")


def test_settings_are_checked_when_they_are_given():
    for settings, message in (
        ({}, "nothing says how much may go"),
        ({"macs": 1.5}, "budget.macs: expected a fraction above 0 and below 1"),
        ({"strength": -1.0}, "lasso.strength: input should be greater than 0"),
    ):
        with pytest.raises(RecipeError, match=message):
            Steering("filters", 0.5, settings)
    for sparse in (0, -3, 1.5, 0.0):
        with pytest.raises(RecipeError, match=f"sparse: give a share .*; got {sparse}"):
            Steering("filters", sparse, {"macs": 0.5})


def test_a_loss_that_is_computed_elsewhere_is_asked_for():
    steering = Steering("filters", 0.5, {"macs": 0.5, "round_to": 1})
    steering.begin(DigitsCNN(4, 10), (torch.randn(2, 1, 8, 8),), {}, 100, None)
    with pytest.raises(TrainingError, match=r"no loss was seen .*: call the callback's saw\(loss\) there|saw\(loss\)"):
        steering.before_step()
    steering.saw(torch.tensor(2.0), 0.5)
    steering.saw(2.0, 0.5)
    steering.before_step()
    assert steering.sparsity is not None and steering.loss == 2.0


@pytest.mark.parametrize(
    ("name", "library", "extra"),
    [("SparseCallback", "transformers", "hf"), ("LightningSparsity", "lightning", "lightning")],
)
def test_a_library_that_is_not_there_is_named(monkeypatch, name, library, extra):
    module = {"hf": "huggingface"}.get(extra, extra)
    monkeypatch.delitem(sys.modules, f"sslprune.callbacks.{module}", raising=False)
    monkeypatch.delattr(sslprune.callbacks, module, raising=False)
    for loaded in [key for key in sys.modules if key.split(".")[0] == library]:
        monkeypatch.setitem(sys.modules, loaded, None)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(RecipeError, match=rf"{name} needs .*: pip install 'sslprune\[{extra}\]'"):
        getattr(sslprune.callbacks, name)
