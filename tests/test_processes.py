"""Several processes train one model: real ones, joined by gloo, and the same result as one."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import typer
from safetensors.torch import load_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from typer.testing import CliRunner

from sslprune.cli import app
from sslprune.cli import together as cli
from sslprune.data import digits
from sslprune.errors import DataError, RecipeError, TrainingError
from sslprune.recipe import Recipe, parse_recipe
from sslprune.train.checkpoint import TrainingFiles
from sslprune.train.evaluate import evaluate
from sslprune.train.parts import Part, check_divides, parts_of
from sslprune.train.sparsity import Sparsity
from sslprune.train.synchronised import synchronised
from sslprune.train.ternary import Ternary, packed, unpacked
from sslprune.train.training import train
from sslprune.values.inputs import tensors_in
from sslprune.values.metrics import CLASSES, IGNORED
from sslprune.values.tasks import Task
from sslprune.values.team import Alone, Team
from sslprune.zoo import digits_cnn
from tests.processes import together

ROOT = Path(__file__).parents[1]


class Rank(Alone):
    """One of several, by its number alone."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world, self.first = rank, world, rank == 0


def net() -> nn.Module:
    return digits_cnn(width=8)


def recipe(**changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "run": {"device": "cpu", "seed": 3, "threads": 1},
        "model": {"factory": f"{__file__}:net"},
        "data": {"factory": "sslprune.data:digits", "augment": ["pad-crop:1"], "batch_size": 64},
        "prune": [{"kind": "filters"}, {"kind": "layers"}],
        "budget": {"macs": 0.5, "round_to": 1},
        "schedule": {"dense": "4it", "sparse": "24it", "heal": "4it", "shrink": "5it"},
        "train": {"lr": 0.002, "momentum": 0.5, "sync_batch_norm": True},
    }
    for key, value in changes.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) and key != "data" else value
    return parse_recipe(values)


# --- a batch in parts


def test_the_parts_of_a_batch_are_the_batch_and_add_up_to_its_gradient() -> None:
    """With targets that do not count, as many as they may be in a part, and rows that do not divide."""
    torch.manual_seed(0)
    model, x = nn.Linear(5, 3).double(), torch.randn(11, 7, 5).double()
    targets = torch.randint(3, (11, 7))
    targets[2:6] = targets[::4, 3:] = IGNORED
    task = Task("tagging", classes_last=True)
    task.loss(model(x), targets).backward()
    expected, model.weight.grad = model.weight.grad, None
    found = [part for rank in range(2) for part in parts_of(((x,), targets), Rank(rank, 2), 2, task.counted)]
    for part in found:
        (part.weighted(task.loss(model(tensors_in(part.inputs)[0]), part.targets)) / 2).backward()
    torch.testing.assert_close(model.weight.grad, expected)
    assert sorted(
        float(tensors_in(part.inputs)[0][i, 0, 0]) for part in found for i in range(len(part.targets))
    ) == sorted(x[:, 0, 0].tolist())


def test_a_part_in_which_nothing_counts_has_no_gradient() -> None:
    x, targets = torch.randn(4, 3, requires_grad=True), torch.tensor([1, IGNORED, 2, IGNORED])
    nothing = parts_of(((x,), targets), Rank(1, 2), 1, Task().counted)[0]
    nothing.weighted(F.cross_entropy(tensors_in(nothing.inputs)[0], nothing.targets)).backward()
    assert x.grad is not None and not x.grad.any()


def test_a_text_keeps_its_streams() -> None:
    batches = [((torch.arange(6)[:, None] + 10 * step,), torch.zeros(6, 1)) for step in range(3)]
    for step, batch in enumerate(batches):
        part = parts_of(batch, Rank(1, 3), 1)[0]
        assert tensors_in(part.inputs)[0][:, 0].tolist() == [1 + 10 * step, 4 + 10 * step]


def test_batches_that_cannot_be_split_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"^data.batch_size: 64 does not divide by 3 processes; take 63 or 66$"):
        check_divides(recipe(), 64, 3)
    with pytest.raises(RecipeError, match=r"data.batch_size: 2 .* 2 processes x train.accumulate = 2; take 4$"):
        check_divides(recipe(train={"accumulate": 2}), 2, 2)
    with pytest.raises(DataError, match="3 rows, fewer than its 4 parts"):
        parts_of(((torch.zeros(3, 1),), torch.zeros(3)), Rank(0, 4), 1)
    edges = torch.zeros(9, 2, dtype=torch.int64)
    with pytest.raises(DataError, match="count each other's rows"):
        parts_of(((torch.zeros(4, 1), edges), torch.zeros(4)), Rank(0, 2), 1)


def test_one_process_with_one_part_sees_the_batch_itself() -> None:
    batch = (torch.zeros(3, 1),), torch.zeros(3)
    assert parts_of(batch, Alone(), 1) == [Part(*batch)]


# --- a team


def whole_team(team: Team) -> None:
    rank = float(team.rank)
    assert team.mean(torch.tensor([rank, 1.0])).tolist() == [1.5, 1.0]
    assert team.broadcast({"rank": team.rank, "at": torch.tensor(rank)}) == {"rank": 0, "at": torch.tensor(0.0)}
    assert team.gather(["x" * team.rank]) == [[""], ["x"], ["xx"], ["xxx"]]
    last = torch.full((2, 3, 2, 2), rank).contiguous(memory_format=torch.channels_last)
    whole = torch.full((3,), rank)
    team.share_([last, whole])
    assert not last.any() and not whole.any() and last.is_contiguous(memory_format=torch.channels_last)
    team.agree("recipe", "same")
    with pytest.raises(TrainingError, match="rank 2 has another recipe than rank 0"):
        team.agree("recipe", "same" if team.rank != 2 else "other")


def counts_each_sample_once(team: Team, batches: list[Any]) -> dict[str, float]:
    torch.manual_seed(0)
    return evaluate(nn.Linear(4, 3), batches, Task(metrics=CLASSES), team)


def normalises_as_one(team: Team, x: torch.Tensor) -> None:
    """Outputs, gradients and running statistics of the whole batch, in a module and in a graph."""
    torch.manual_seed(1)
    whole = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 2)).double()
    mine = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 2)).double()
    mine.load_state_dict(whole.state_dict())
    whole(x).square().mean().backward()
    wrapper = DistributedDataParallel(mine)
    with synchronised(team.world):
        wrapper(x[team.rank :: team.world]).square().mean().backward()
    for (name, a), b in zip(whole.named_parameters(), mine.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, msg=name, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(dict(mine.named_buffers()), dict(whole.named_buffers()), rtol=1e-5, atol=1e-7)
    scale = torch.ones(3).double()
    arguments = scale, scale, torch.zeros(3).double(), scale.clone(), True, 0.1, 1e-5, False
    with synchronised(team.world):
        out = torch.ops.aten.batch_norm.default(x[team.rank :: team.world], *arguments)
    expected = F.batch_norm(x, None, None, scale, scale, training=True)[team.rank :: team.world]
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def draws(team: Team, repeats: int) -> dict[str, Any]:
    """Means of ternary gradients over all processes and many draws, beside those of the clipped ones."""
    torch.manual_seed(team.rank)
    big, odd, last = nn.Parameter(torch.zeros(40, 25)), nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(7, 2))
    parameters = [big, odd, last]
    given = [torch.randn(parameter.shape) for parameter in parameters]
    given[0][0, 0] = 100.0  # far beyond what is clipped
    state, total, first = Ternary(team.world, [id(last)], seed=team.rank), torch.zeros(1003), torch.zeros(0)
    for _ in range(repeats):
        found = [gradient.clone() for gradient in given]
        state.average(found, parameters)  # type: ignore[arg-type]
        drawn = torch.cat([gradient.flatten() for gradient in found[:2]])
        total += drawn / repeats
        first = first if len(first) else drawn
        torch.testing.assert_close(found[2], team.mean(given[2]))
    clipped = [g.clamp(-2.5 * g.std(correction=0), 2.5 * g.std(correction=0)) for g in given[:2]]
    scale = [max(team.gather(float(g.abs().max()))) for g in clipped]
    return {
        "mean": total,
        "expected": team.mean(torch.cat([g.flatten() for g in clipped])),
        "first": first,
        "scale": torch.tensor(scale).repeat_interleave(torch.tensor([1000, 3])),
        "sent": state.sent // repeats,
        "received": state.received // repeats,
    }


def look_at_draws(found: list[dict[str, Any]], repeats: int) -> None:
    """Right on average, the same on all, of three levels for each process, and packed."""
    world, one = len(found), found[0]
    for other in found:
        assert torch.equal(other["first"], one["first"])
    levels = one["first"] * world / one["scale"]
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)
    assert float(levels.abs().max()) <= world + 1e-4
    spread = one["scale"] / (2 * (world * repeats) ** 0.5)  # of the mean, at most: each draw is 0 or ± scale
    assert bool(((one["mean"] - one["expected"]).abs() < 5 * spread).all())
    assert not bool((one["expected"].abs() < 5 * spread).all())  # it says something
    whole, codes, scales = 4 * 14, 2 * -(-1003 // 8), 4 * 2
    if world <= 3:
        assert one["sent"] == codes + scales + whole
        assert 4 * 1000 / (codes + scales) > 14
    bits = math.ceil(math.log2(2 * world + 1))
    part = -(-1003 // (8 * world))
    assert world <= 3 or one["sent"] == (2 * world + bits) * part + scales + whole


def test_numbers_are_packed_by_bits() -> None:
    for bits, world in ((2, 1), (4, 7), (5, 8), (9, 200)):
        values = torch.randint(2 * world + 1, (1003,), dtype=torch.int32)
        data = packed(values, bits)
        assert data.dtype == torch.uint8 and len(data) == bits * -(-1003 // 8)
        assert torch.equal(unpacked(data, bits, 1003).to(torch.int32), values)


def test_ternary_gradients_are_right_on_average() -> None:
    for world in (2, 4):
        look_at_draws(together(world, draws, 100), 100)


def everything(team: Team, batches: list[Any], x: torch.Tensor) -> dict[str, float]:
    whole_team(team)
    normalises_as_one(team, x)
    return counts_each_sample_once(team, batches)


def test_a_team_of_four() -> None:
    """Three batches for four processes: one has none of them."""
    torch.manual_seed(0)
    batches = [((torch.randn(n, 4),), torch.randint(3, (n,))) for n in (5, 3, 4)]
    alone = counts_each_sample_once(Alone(), batches)
    for found in together(4, everything, batches, torch.randn(8, 3, 3, 3).double()):
        assert found == pytest.approx(alone, rel=1e-12)


# --- training


def trained(team: Team, values: Recipe, folder: Path) -> None:
    train(values, TrainingFiles(folder), team=team)


def of(folder: Path) -> tuple[dict[str, torch.Tensor], Any, list[dict[str, Any]]]:
    read = [json.loads((folder / name).read_text()) for name in ("selection.json", "history.json")]
    return load_file(folder / "masked.safetensors"), read[0], read[1]


PLAIN = {"model": {"factory": f"{__file__}:plain"}, "prune": [{"kind": "neurons"}]}
TAUGHT = {**PLAIN, "train": {"optimizer": "adamw", "lr": 0.001}, "distill": {"weight": 0.5}}


@pytest.mark.parametrize(("world", "changes"), [(2, {}), (4, TAUGHT)], ids=["batch norms", "AdamW and a teacher"])
def test_as_many_processes_as_you_like_train_the_same(tmp_path: Path, world: int, changes: dict[str, Any]) -> None:
    """The same groups go, weights differ by the order of sums; also where groups leave the model in between."""
    values = recipe(**changes)
    trained(Alone(), values, tmp_path / "1")
    together(world, trained, values, tmp_path / "more")
    (alone, selection, history), (found, chosen, told) = of(tmp_path / "1"), of(tmp_path / "more")
    assert history[-1]["parameters"] < history[0]["parameters"]
    assert chosen == selection
    for name, value in alone.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-3 * float(value.abs().max()))
    for one, other in zip(history, told, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert other["parameters"] == one["parameters"]


def test_factors_of_gradients_are_a_fraction_of_them_and_the_same_again(tmp_path: Path) -> None:
    """PowerSGD sends again when an answer comes: no answer gets lost, also where groups leave the model."""
    schedule = {"dense": "4it", "sparse": "24it", "heal": "4it", "shrink": "12it"}
    values = recipe(train={"compress": "powersgd", "lr": 0.02}, schedule=schedule)
    for name in ("one", "again"):
        together(2, trained, values, tmp_path / name)
    (one, _, history), (again, _, _) = of(tmp_path / "one"), of(tmp_path / "again")
    assert all(torch.equal(value, again[name]) for name, value in one.items())
    assert history[-1]["loss"] < history[0]["loss"] and history[-1]["parameters"] < history[0]["parameters"]
    assert history[1]["bytes"] < 0.75 * 4 * history[1]["parameters"]


def test_a_batch_in_time_is_the_batch(tmp_path: Path) -> None:
    for count in (1, 4):
        values = recipe(**PLAIN, train={"accumulate": count, "sync_batch_norm": False})
        trained(Alone(), values, tmp_path / str(count))
    (one, chosen, _), (other, same, _) = of(tmp_path / "1"), of(tmp_path / "4")
    assert chosen == same
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-5)


def plain() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 10))


def own_loop(team: Team, wrapped: bool) -> tuple[dict[str, torch.Tensor], str, float]:
    """A person's own loop over replicas, whose losses differ, with a removal in the middle."""
    torch.manual_seed(0)
    x, labels = torch.randn(64, 1, 8, 8), torch.randint(10, (64,))
    model = plain()
    found: Any = DistributedDataParallel(model) if wrapped else model
    sparsity = Sparsity(found, (x[:2],), prune="neurons", macs=0.5, round_to=1, steps=30)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.5)
    for step in range(40):
        optimizer.zero_grad()
        mine = slice(team.rank, None, team.world)
        loss = F.cross_entropy(found(x[mine]), labels[mine])
        loss.backward()
        sparsity.observe(loss)
        optimizer.step()
        sparsity.step(0.01)
        if step == 32:
            small = sparsity.shrink(optimizer)
            assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
            found = DistributedDataParallel(small) if wrapped else small
    weights = {name: value.clone() for name, value in sparsity.restore().state_dict().items()}
    return weights, sparsity.selection.to_json(), sparsity.fraction


def test_a_loop_of_ones_own_over_replicas() -> None:
    alone, selection, fraction = own_loop(Alone(), False)
    found = together(2, own_loop, True)
    for weights, chosen, reached in found:
        assert chosen == selection and reached == fraction <= 0.5
        for name, value in alone.items():
            torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-5)
            assert torch.equal(weights[name], found[0][0][name])


def test_weights_that_do_not_lie_here_whole_are_refused() -> None:
    with pytest.raises(TrainingError, match="take DistributedDataParallel"):
        Sparsity(nn.DataParallel(plain()), (torch.zeros(2, 64),), prune="neurons", macs=0.5, steps=3)
    together(2, shards)


def shards(team: Team) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = plain()
    fully_shard(model, mesh=init_device_mesh("cpu", (team.world,)))
    with pytest.raises(TrainingError, match=r"1.weight is sharded .*DistributedDataParallel, or shard the repacked"):
        Sparsity(model, (torch.zeros(2, 64),), prune="neurons", macs=0.5, steps=3)


# --- the command line


class Dying:
    """A loader of the digits; the process of ``rank`` is killed in its third pass, once, and leaves a ``flag``."""

    def __init__(self, flag: str, rank: int) -> None:
        train, _ = digits()
        self.flag, self.rank, self.passes = Path(flag), str(rank), 0
        rows = TensorDataset(train.pixels.float() / 255, train.labels)
        self.loader = DataLoader(rows, batch_size=100, shuffle=True, drop_last=True)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        self.passes += 1
        for step, batch in enumerate(self.loader):
            if (os.environ.get("RANK"), self.passes, step) == (self.rank, 3, 2) and not self.flag.exists():
                self.flag.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch


def dying(flag: str, rank: int) -> tuple[Any, Any]:
    _, test = digits()
    return Dying(flag, rank), [(test.pixels.float() / 255, test.labels)]


class Dropping(nn.Module):
    """The net with dropout, whose draws differ on each process."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(F.dropout(x, 0.1, self.training))


def fails(rank: int) -> nn.Module:
    """The net; cannot be made in the process of ``rank``."""
    if os.environ.get("RANK") == str(rank):
        raise ValueError("there is no net here")
    return net()


def command(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), **env}
    return subprocess.run(
        [sys.executable, *words], env=environment, capture_output=True, text=True, timeout=200, cwd=ROOT, check=False
    )


def written(folder: Path, **changes: Any) -> str:
    path = folder / "recipe.toml"
    path.write_text(recipe(**changes).to_toml())
    return str(path)


def test_a_run_whose_process_is_killed_ends_as_if_it_was_not(tmp_path: Path) -> None:
    """torchrun starts it again, and it goes on from its last checkpoint, bit for bit, after groups have left."""
    changes: dict[str, Any] = {
        "model": {"factory": f"{__file__}:Dropping"},
        "data": {"factory": f"{__file__}:dying", "arguments": {"flag": str(tmp_path / "died"), "rank": 1}},
        "schedule": {"dense": "1ep", "sparse": "20it", "heal": "4it", "shrink": "5it"},
        "train": {"lr": 0.01},
    }
    path = written(tmp_path, **changes)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    done = command(*torchrun, "-m", "sslprune", "train", path, "--run-dir", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "died").exists() and "resuming after epoch 2 of 4" in done.stderr
    together(2, trained, recipe(**changes), tmp_path / "whole")
    (found, chosen, history), (whole, selection, _) = of(tmp_path / "run/train"), of(tmp_path / "whole")
    assert history[1]["parameters"] < history[0]["parameters"]
    assert chosen == selection
    assert all(torch.equal(found[name], value) for name, value in whole.items())


def test_an_error_on_one_rank_is_one_line_and_ends_all(tmp_path: Path) -> None:
    path = written(tmp_path, model={"factory": f"{__file__}:fails", "arguments": {"rank": 1}})
    done = command("-m", "sslprune", "run", path, "--run-dir", str(tmp_path / "run"), "--processes", "2")
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if "error" in line]
    assert len(errors) == 1 and errors[0].startswith("error: rank 1: ") and "there is no net here" in errors[0]
    assert not (tmp_path / "run").exists()
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert path not in running


def test_what_can_be_known_is_said_before_processes_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "_launch", lambda processes: pytest.fail("started"))
    words = ["--set", "model.factory=sslprune.zoo:lenet", "--processes", "3"]
    pictures = {"train": str(tmp_path / "a.parquet"), "test": str(tmp_path / "b.parquet")}
    path = tmp_path / "recipe.toml"
    path.write_text(parse_recipe({**recipe().values(), "data": pictures | {"batch_size": 64}}).to_toml())
    result = CliRunner().invoke(app, ["run", str(path), *words])
    assert result.exit_code == 1
    assert "data.batch_size: 64 does not divide by 3 processes; take 63 or 66" in result.output


def test_the_other_ranks_leave_a_command_of_one_to_the_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = CliRunner().invoke(app, ["inspect", str(tmp_path / "there is none.toml")])
    assert result.exit_code == 0 and not result.output
    monkeypatch.setenv("RANK", "0")
    result = CliRunner().invoke(app, ["inspect", str(tmp_path / "there is none.toml")])
    assert result.exit_code == 1 and result.output.startswith("error: rank 0: ")


@pytest.mark.parametrize(
    ("statuses", "status", "told"),
    [
        ({0: 3}, 3, ""),
        ({0: cli.QUIET, 1: 1}, 1, ""),
        ({0: cli.QUIET, 1: -9}, 1, "error: rank 1 was ended by SIGKILL"),
        ({0: -15, 1: -9}, 1, "error: rank 1 was ended by SIGKILL"),
        ({0: 143, 1: cli.QUIET}, 1, "error: rank 0 was ended by SIGTERM"),
        ({0: cli.QUIET, 1: cli.QUIET}, 1, ""),
    ],
)
def test_who_was_ended(statuses: dict[int, int], status: int, told: str, capsys: pytest.CaptureFixture[str]) -> None:

    with pytest.raises(typer.Exit) as ended:
        cli._tell(statuses)
    assert ended.value.exit_code == status and capsys.readouterr().err.startswith(told)
