"""Accuracy at equal MACs and equal training, beside Torch-Pruning 1.6.1: a CIFAR ResNet's checkpoint, four arms.

    python scripts/compare_torch_pruning.py --depth 20 --checkpoint resnet20-cifar10.th --train train.parquet \\
        --test test.parquet --sparse 5ep --heal 10ep --macs 1/2.11 1/2.55 --seeds 0 1 2 --threads 1 --out results.jsonl
    python scripts/compare_torch_pruning.py --latency --out results.jsonl   # all models timed in turns
    python scripts/compare_torch_pruning.py --table --out results.jsonl     # as Markdown: means, and spread over seeds
    python scripts/compare_torch_pruning.py --curve --out results.jsonl     # likewise: after so many healing epochs

dense   the dense model, trained through the same two phases: the control
peer    Torch-Pruning's sparse learning, then its cut to the MACs, then ordinary training
inner   sslprune on the inner width of each block, which is all that the peer can remove here
all     sslprune on every width and on whole residual branches
layers  sslprune on whole residual branches alone; not among the arms unless named (see below)

Equal for all arms: checkpoint, epochs in each phase, batches and their order, augmentation, optimizer (SGD with
Nesterov momentum, as the recipe resnet56-cifar10.toml says), weight decay, precision, threads; ``--set`` changes the
recipe of all arms, and ``--teacher`` teaches all that the command names. dense and peer train by ``--sparse-lr`` and
``--heal-lr``, each phase with a schedule of its own; ours by the recipe's ``[train]``, where lr and lr_schedule are
those of healing; ``--ours`` changes its recipe further.
Widths are rounded to nothing (``--round-to 1``), as the peer's are. Accuracy is that of the last epoch; with
``--valid N`` it is judged on N held-out training images, and the test data are not looked at. (The checkpoint was
trained on those images too, so it scores higher on them; compare settings there, and quote the test data.)

The peer's settings are those of reproduce/main.py in its repository for ``--method group_sl`` on CIFAR-10:
GroupMagnitudeImportance(p=2, normalizer="max"), GroupNormPruner(reg=5e-4, global_pruning=True, iterative_steps=400,
pruning_ratio=1.0), ``regularize`` in each step of the sparse phase, no weight decay and lr 0.01 in that phase, then
steps of the pruner until the MACs are reached. There each phase has 100 epochs with lr / 10 after 60 and 80 and keeps
its best epoch on the test set; here the last one. On the shortcut without parameters the peer ends in an IndexError, so
it is told to ignore what is added to it: the stem and each block's second convolution.

Accuracy against layers left, after Wen et al. 2016 (a ResNet-32 that keeps 18 layers beats the dense ResNet-20):

    ... --depth 32 --checkpoint resnet32-cifar10.th --arms dense layers --macs 0.9 0.766 0.56 0.423  # 28, 24, 18, 14
    ... --depth 20 --checkpoint resnet20-cifar10.th --arms dense layers --macs 0.92 0.83 0.715        # 18, 16, 14
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import torch
from torch import Tensor, nn

from sslprune import Cost, export_onnx, find_axes, trace
from sslprune import repack as repack_model
from sslprune.bench import bench_files
from sslprune.choose.sections import select
from sslprune.data import Data, build_data
from sslprune.models.build import build_model, count_parameters, device_of, load_checkpoint, load_weights
from sslprune.recipe import GatesSection, PruneSection, Recipe, TrainSection, load_recipe
from sslprune.report import Absent
from sslprune.run.directory import RunDirectory
from sslprune.run.learn import train
from sslprune.show.terminal import Show
from sslprune.train.compiled import Compiler
from sslprune.train.evaluate import evaluate
from sslprune.train.optimizer import build_optimizer, learning_rate
from sslprune.train.schedule import Schedule
from sslprune.train.teacher import build_teacher, mixed_loss
from sslprune.values.inputs import Inputs

ARMS = ("dense", "peer", "inner", "all", "layers")
OURS = ARMS[2:]
RECIPE = Path(__file__).resolve().parent.parent / "recipes" / "resnet56-cifar10.toml"
INNER = ["layer*.conv1"]


@dataclass
class Outcome:
    """What one arm comes to; accuracies in percent."""

    loaded: float = 0.0
    before: float = 0.0  # at the end of the sparse phase
    cut: float = 0.0  # the small model before any healing
    end: float = 0.0
    macs_left: float = 1.0
    macs: int = 0
    parameters: int = 0
    layers: int = 0  # convolutions and linear layers
    seconds: dict[str, float] = field(default_factory=dict)  # the median epoch of a phase, its evaluation included
    epochs: list[float] = field(default_factory=list)  # accuracy after each


def main() -> None:
    options = arguments()
    if options.table or options.curve:
        print("\n".join((table if options.table else curve)(read(options.out))))
    elif options.latency:
        latency(options.out, options.work)
    else:
        torch.set_num_threads(options.threads)
        budgets = [float(Fraction(1) / Fraction(m[2:]) if m.startswith("1/") else Fraction(m)) for m in options.macs]
        for seed, arm in product(options.seeds, options.arms):
            for budget in budgets if arm != "dense" else [None]:
                run(options, arm, seed, budget)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results.jsonl"), help="a line for each model; none twice")
    parser.add_argument("--work", type=Path, help="folder of runs and ONNX files; beside --out where left out")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--curve", action="store_true")
    parser.add_argument("--latency", action="store_true")
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--checkpoint", default="checkpoints/resnet20-cifar10.th")
    parser.add_argument("--train", default="data/cifar10/train.parquet")
    parser.add_argument("--test", default="data/cifar10/test.parquet")
    parser.add_argument("--valid", type=int, default=0, metavar="N", help="judge on N training images held out")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS[:4]))
    parser.add_argument("--macs", nargs="+", default=["1/2.11", "1/2.55"], help="that may remain")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--sparse", default="5ep")
    parser.add_argument("--heal", default="10ep")
    parser.add_argument("--sparse-lr", type=float, default=0.01)
    parser.add_argument("--sparse-schedule", default="constant")
    parser.add_argument("--heal-lr", type=float, default=0.05)
    parser.add_argument("--heal-schedule", default="one-cycle")
    parser.add_argument("--reg", type=float, default=5e-4, help="of the peer")
    parser.add_argument("--peer-sparse-decay", type=float, default=0.0, help="its weight decay in the sparse phase")
    parser.add_argument("--round-to", default="1", help="our widths; the peer rounds to nothing")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="of all arms' recipe")
    parser.add_argument("--ours", nargs="+", default=[], metavar="KEY=VALUE", help="of our arms' recipe")
    parser.add_argument("--teacher", type=Path, metavar="PT", help="a dense arm's, from --work: it teaches these arms")
    parser.add_argument("--teach", type=float, default=0.9, metavar="WEIGHT", help="of what the teacher says")
    parser.add_argument("--amp", choices=["off", "bf16", "auto"], default="off")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if any(given.startswith("distill") for given in options.set):
        parser.error("--set distill: only ours would learn from it; the teacher of all arms is --teacher")
    options.work = options.work or options.out.with_suffix("")
    for name in ("sparse", "heal"):  # "5" is five epochs
        value = getattr(options, name)
        setattr(options, name, f"{value}ep" if value.isdecimal() else value)
    return options


def run(options: argparse.Namespace, arm: str, seed: int, budget: float | None) -> None:
    """One model, unless the results hold it already: trained, judged, written as ONNX."""
    identity = {"kind": "run", "depth": options.depth, "arm": arm, "seed": seed, "budget": budget}
    identity["settings"] = settings(options, arm)
    found = [line for line in read(options.out) if all(line.get(key) == value for key, value in identity.items())]
    name = f"resnet{options.depth}-{arm}{f'-{budget:.4f}' if budget else ''}-seed{seed}"
    if found:
        print(f"{name}: {found[0]['end']:.2f} % already in {options.out}", flush=True)
        return
    recipe = recipe_of(options, arm, seed, budget)
    digest = hashlib.sha256(json.dumps(identity["settings"]).encode()).hexdigest()[:6]
    folder = options.work / f"{name}-{digest}"
    outcome, small = (
        ours(recipe, folder) if arm in OURS else others(options, recipe, budget, learned(options, identity))
    )
    onnx = folder.with_name(f"{folder.name}.onnx")
    onnx.parent.mkdir(parents=True, exist_ok=True)
    if arm == "dense":  # it may be a --teacher
        torch.save(small.state_dict(), onnx.with_suffix(".pt"))
    export_onnx(small.cpu(), (torch.zeros(2, 3, 32, 32),), onnx, input_names=["image"])
    line = {**identity, **vars(outcome), "onnx": onnx.name}
    with options.out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    print(f"{name}: {outcome.cut:.2f} % at the cut, {outcome.end:.2f} % at the end", flush=True)


def settings(options: argparse.Namespace, arm: str) -> dict[str, Any]:
    """What a result depends on beside its arm, depth, seed and budget."""
    names = ["sparse", "heal", "valid", "amp", "set", "heal_lr", "heal_schedule"]
    names += ["round_to", "ours"] if arm in OURS else ["sparse_lr", "sparse_schedule"]
    names += ["reg", "peer_sparse_decay"] if arm == "peer" else []
    taught = {"teacher": options.teacher.name, "teach": options.teach} if options.teacher else {}
    device = {"device": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {name: getattr(options, name) for name in names} | taught | device


def learned(options: argparse.Namespace, identity: dict[str, Any]) -> Path:
    """Where dense or peer keeps its sparse phase: all of its budgets begin from the same weights."""
    shared = {name: identity[name] for name in ("depth", "arm", "seed")}
    shared["settings"] = {k: v for k, v in identity["settings"].items() if not k.startswith("heal")}
    digest = hashlib.sha256(json.dumps(shared).encode()).hexdigest()[:6]
    return options.work / f"resnet{options.depth}-{identity['arm']}-seed{identity['seed']}-sparse-{digest}.pt"


def recipe_of(options: argparse.Namespace, arm: str, seed: int, budget: float | None) -> Recipe:
    overrides = [
        f"model.arguments.depth={options.depth}", f"model.checkpoint={options.checkpoint}",
        f"data.train={options.train}", f"data.test={options.test}", f"data.hold_out={options.valid}",
        f"run.seed={seed}", f"run.threads={options.threads}", f"budget.macs={budget or 0.5}",
        f"budget.round_to={options.round_to}", f"schedule.sparse={options.sparse}", f"schedule.heal={options.heal}",
        f"train.lr={options.heal_lr}", f"train.lr_schedule={options.heal_schedule}", "train.warmup=0it",
        f"train.amp={options.amp}", *options.set,
    ]  # fmt: skip
    if options.teacher:
        overrides += [
            "distill.teacher.factory=sslprune.zoo:resnet_cifar", f"distill.teacher.arguments.depth={options.depth}",
            f"distill.teacher.checkpoint={options.teacher}", f"distill.weight={options.teach}",
        ]  # fmt: skip
    recipe = load_recipe(RECIPE, [*overrides, *(options.ours if arm in OURS else [])])
    sections = {"inner": PruneSection(kind="filters", include=INNER), "layers": PruneSection(kind="layers")}
    return recipe.model_copy(update={"prune": [sections[arm]]}) if arm in sections else recipe


class Watch(Show):
    """Quiet, but for a line an epoch; keeps the checkpoint of the last sparse epoch, which training writes over."""

    def __init__(self, directory: RunDirectory, num_sparse: int, kept: Path) -> None:
        super().__init__(quiet=True)
        self.directory, self.num_sparse, self.kept = directory, num_sparse, kept

    def say(self, line: str = "", style: str = "") -> None:
        print(line, flush=True)
        if len(past(self.directory)) == self.num_sparse and self.directory.checkpoint.is_file():
            shutil.copyfile(self.directory.checkpoint, self.kept)


def ours(recipe: Recipe, folder: Path) -> tuple[Outcome, nn.Module]:
    """The recipe's run, taken up where one was broken off; at the cut, as at the end, the repacked model is judged."""
    directory, kept = RunDirectory(folder), folder / "cut.pt"
    data = build_data(recipe)
    spans = Schedule.of(recipe, len(data.train))
    watch = Watch(directory, sum(epoch.phase in ("calibrate", "sparse") for epoch in spans.epochs), kept)
    outcome = Outcome(loaded=accuracy(build_model(recipe.model)[0], recipe, data))
    resume = kept.is_file() or len(past(directory)) < watch.num_sparse
    recipe = recipe.model_copy(update={"gates": GatesSection()})  # the table judges
    train(recipe, directory, watch, resume=resume, force=not resume)
    history = past(directory)
    outcome.epochs = [record["valid" if data.valid else "test"]["accuracy"] for record in history]
    outcome.before = outcome.epochs[watch.num_sparse - 1]
    outcome.seconds = {p: median(r["seconds"] for r in history if r["phase"] == p) for p in ("sparse", "heal")}
    cut, _ = repacked(recipe, data, load_checkpoint(kept)["model"], kept)
    outcome.cut = accuracy(cut, recipe, data)
    small, dense = repacked(recipe, data, load_checkpoint(directory.masked), directory.masked)
    outcome.end = accuracy(small, recipe, data)
    sizes = count_parameters(cut), count_parameters(small)
    if sizes[0] != sizes[1]:
        raise RuntimeError(f"{sizes[0]:,} parameters at the cut, {sizes[1]:,} at the end: zeros came or went")
    return measured(outcome, small, dense), small


def past(directory: RunDirectory) -> list[dict[str, Any]]:
    """The epochs that a run has behind it."""
    return json.loads(directory.history.read_text()) if directory.history.is_file() else []


def repacked(recipe: Recipe, data: Data, weights: dict[str, Any], source: Path) -> tuple[nn.Module, float]:
    """The small model of the masked ``weights``, proven equal on the example, and the MACs of the dense one."""
    model, _ = build_model(recipe.model)
    load_weights(model, weights, source)
    program = trace(model.eval(), tuple(each.cpu() for each in inputs_of(data.example)))
    axes = select(find_axes(program), recipe.prune)
    return repack_model(model, program, axes), Cost(program, []).macs()


def others(options: argparse.Namespace, recipe: Recipe, budget: float | None, kept: Path) -> tuple[Outcome, nn.Module]:
    """The peer to ``budget``, or the dense control where it is None; ``kept`` may hold the sparse phase already."""
    torch.manual_seed(recipe.run.seed)
    data = build_data(recipe)
    model, _ = build_model(recipe.model)
    outcome = Outcome(loaded=accuracy(model, recipe, data))
    sparse = recipe.train.model_copy(update={"lr": options.sparse_lr, "lr_schedule": options.sparse_schedule})
    dense = macs_of(model)
    regularize = None
    if budget is not None:
        pruner = peer_pruner(model.to(device_of(recipe.run)), options.reg, inputs_of(data.example)[0])
        sparse = sparse.model_copy(update={"weight_decay": options.peer_sparse_decay})
        regularize = partial(pruner.regularize, model)
    if kept.is_file():
        state = torch.load(kept, weights_only=True)
        model.load_state_dict(state["model"])
        outcome = Outcome(**state["outcome"])
    else:
        phase(model, recipe, data, "sparse", sparse, outcome, regularize)
        outcome.before = outcome.cut = outcome.epochs[-1]
        kept.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"model": model.state_dict(), "outcome": vars(outcome)}, kept.with_suffix(".tmp"))
        kept.with_suffix(".tmp").replace(kept)
    if budget is not None:
        model.eval()
        while macs_of(model) > budget * dense and pruner.current_step < pruner.iterative_steps:
            pruner.step()
        model.zero_grad(set_to_none=True)  # gradients have the old shapes
        outcome.cut = accuracy(model, recipe, data)
    phase(model, recipe, data, "heal", recipe.train, outcome)
    outcome.end = accuracy(model, recipe, data)
    return measured(outcome, model, dense), model


def peer_pruner(model: nn.Module, reg: float, example: Tensor) -> Any:
    """Torch-Pruning's group_sl, kept away from what is added to the shortcut; see the head of this file."""
    import torch_pruning

    added = [model.get_submodule(name) for name, _ in model.named_modules() if name.endswith(".conv2")]
    return torch_pruning.pruner.GroupNormPruner(
        model,
        example[:1],
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2, normalizer="max"),
        reg=reg,
        global_pruning=True,
        iterative_steps=400,
        pruning_ratio=1.0,
        ignored_layers=[model.get_submodule("conv1"), *added, model.get_submodule("linear")],
    )


def phase(
    model: nn.Module,
    recipe: Recipe,
    data: Data,
    name: str,
    section: TrainSection,
    outcome: Outcome,
    regularize: Callable[[], Any] | None = None,
) -> None:
    """Ordinary training through one phase, with a learning-rate schedule of its own; ``regularize`` adds gradients."""
    device = device_of(recipe.run)
    model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    student = Compiler(section.compile)(model)
    optimizer = build_optimizer(model, section)
    schedule = Schedule.of(recipe, len(data.train))
    precise = section.amp == "off" or (section.amp == "auto" and device.type == "cpu")
    teacher = None
    if recipe.distill is not None and recipe.distill.teacher is not None:
        teacher = build_teacher(recipe.distill.teacher, model, data).to(device)
    epochs = [epoch for epoch in schedule.epochs if epoch.phase == name]
    seconds, step = [], 0
    for epoch in epochs:
        started = time.perf_counter()
        model.train()
        total = torch.zeros((), device=device)
        for _, (inputs, targets) in zip(range(epoch.num_steps), data.train.epoch(epoch.number), strict=False):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(section, step, schedule.steps[name], schedule.epoch_steps)
            optimizer.zero_grad(set_to_none=True)
            (images,) = inputs_of(inputs)
            images = images.contiguous(memory_format=torch.channels_last)
            with torch.autocast(device.type, torch.bfloat16, enabled=not precise):
                outputs = student(images)
                loss = data.task.loss(outputs, targets, section.label_smoothing)
                if teacher is not None and recipe.distill is not None:
                    with torch.no_grad():
                        said = teacher(images)
                    loss = mixed_loss(loss, outputs, said, targets, data.task, recipe.distill)
            loss.backward()
            if regularize is not None:
                regularize()
            optimizer.step()
            total += loss.detach()
            step += 1
        outcome.epochs.append(accuracy(model, recipe, data))
        seconds.append(time.perf_counter() - started)
        loss_mean = float(total) / epoch.num_steps
        print(f"{epoch.label}: loss {loss_mean:.4f}, {outcome.epochs[-1]:.2f} %, {seconds[-1]:.1f} s", flush=True)
    outcome.seconds[name] = median(seconds)


def inputs_of(inputs: Inputs) -> tuple[Tensor, ...]:
    assert isinstance(inputs, tuple)
    return inputs


def accuracy(model: nn.Module, recipe: Recipe, data: Data) -> float:
    """Percent, on the held-out images where there are any, else on the test data."""
    return evaluate(model.to(device_of(recipe.run)), data.valid or data.test, data.task)["accuracy"]


def macs_of(model: nn.Module) -> float:
    """Multiply-adds of convolutions and linear layers for one picture, by hooks: faster than a trace a step."""
    found: list[float] = []

    def note(module: Any, _: Any, output: Tensor) -> None:
        found.append(output[0].numel() * module.weight[0].numel())

    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    device = next(model.parameters()).device
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, 32, 32, device=device))
    for hook in hooks:
        hook.remove()
    return sum(found)


def measured(outcome: Outcome, small: nn.Module, dense: float) -> Outcome:
    """The sizes, counted as sslprune counts them for every arm."""
    small.cpu().eval()
    macs = Cost(trace(small, (torch.zeros(2, 3, 32, 32),)), []).macs()
    outcome.macs, outcome.macs_left, outcome.parameters = round(macs), macs / dense, count_parameters(small)
    outcome.layers = sum(parameter.dim() > 1 for parameter in small.parameters())
    return outcome


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def latency(out: Path, work: Path) -> None:
    """Time the ONNX files of each depth in turns, one thread, batches of 1 and 128; the latest timing counts.

    ``speedup`` is over the first dense model, from pairs of timings: what a busy machine disturbs least.
    """
    runs = [line for line in read(out) if line["kind"] == "run"]
    for depth in sorted({line["depth"] for line in runs}):
        found = sorted((ARMS.index(line["arm"]), line["onnx"]) for line in runs if line["depth"] == depth)
        files = [work / Path(onnx).name for _, onnx in found]
        bench = bench_files(
            files, devices=["cpu"], runtimes=["onnxruntime"], batch_sizes=(1, 128), threads=(1,), repetitions=100
        )
        with out.open("a", encoding="utf-8") as file:
            for path, timed in zip(files, bench.comparison.models, strict=True):
                ms = {str(t.batch_size): t.median_ms for t in timed.latency if not isinstance(t, Absent)}
                ratio = {str(t.batch_size): t.ratio for t in timed.speedup if not isinstance(t, Absent)}
                file.write(json.dumps({"kind": "latency", "onnx": path.name, "ms": ms, "speedup": ratio}) + "\n")


def table(lines: list[dict[str, Any]]) -> Iterator[str]:
    """Markdown: a row for each arm, budget and set of settings; mean ± sample standard deviation over the seeds."""
    times = {line["onnx"]: line for line in lines if line["kind"] == "latency"}
    settings_seen: list[dict[str, Any]] = []
    yield "| model | MACs | arm | at load | before the cut | at the cut | at the end | layers | parameters | s an epoch, sparse | heal | ms, batch 1 | batch 128 | seeds | settings |"  # noqa: E501
    yield "|" + " --- |" * 15
    for runs in alike(lines):
        first = runs[0]
        if first["settings"] not in settings_seen:
            settings_seen.append(first["settings"])
        cells = [f"ResNet-{first['depth']}", f"{mean(r['macs_left'] for r in runs):.4f}", first["arm"]]
        cells += [spread([r[name] for r in runs]) for name in ("loaded", "before", "cut", "end")]
        cells += [f"{mean(r['layers'] for r in runs):.3g}", f"{mean(r['parameters'] for r in runs):,.0f}"]
        cells += [f"{mean(r['seconds'][p] for r in runs):.1f}" for p in ("sparse", "heal")]
        for batch in ("1", "128"):
            known = [times[r["onnx"]] for r in runs if r["onnx"] in times]
            ratios = [time["speedup"][batch] for time in known if batch in time["speedup"]]
            cells.append(f"{mean(time['ms'][batch] for time in known):.3g}" if known else "-")
            cells[-1] += f" ({mean(ratios):.2f}x)" if ratios else ""
        cells += [str(len(runs)), f"({1 + settings_seen.index(first['settings'])})"]
        yield "| " + " | ".join(cells) + " |"
    yield from explained(settings_seen)


def curve(lines: list[dict[str, Any]]) -> Iterator[str]:
    """Markdown: the accuracy at the cut and after 1, 2, 4, 8 and all healing epochs; means over the seeds.

    ``level``: the epoch of all, sparse ones included, by which one of ours is as accurate as the peer is at its end, to
    the same budget and with the same help on the same machine.
    """
    groups = [runs for runs in alike(lines) if runs[0]["budget"] and runs[0]["settings"]["heal"].endswith("ep")]
    settings_seen: list[dict[str, Any]] = []
    yield "| model | MACs | arm | at the cut | 1 | 2 | 4 | 8 | end | level | seeds | settings |"
    yield "|" + " --- |" * 12
    for runs in groups:
        first = runs[0]
        if first["settings"] not in settings_seen:
            settings_seen.append(first["settings"])
        heal = int(first["settings"]["heal"].removesuffix("ep"))
        means = [mean(at) for at in zip(*(run["epochs"] for run in runs), strict=True)]
        after = [means[-heal:][min(count, heal) - 1] for count in (1, 2, 4, 8, heal)]
        ends = [
            mean(run["end"] for run in peers)
            for peers in groups
            if peers[0]["arm"] == "peer" and first["arm"] in OURS and rival(peers[0]) == rival(first)
        ]
        begins = any(given.startswith("calibrate.") for given in first["settings"].get("ours", []))  # no epoch
        level = next((str(i) for i, value in enumerate(means, 1 - begins) if ends and value >= max(ends)), "-")
        cells = [f"ResNet-{first['depth']}", f"{mean(run['macs_left'] for run in runs):.3f}", first["arm"]]
        cells += [f"{value:.2f}" for value in (mean(run["cut"] for run in runs), *after)]
        cells += [level, str(len(runs)), f"({1 + settings_seen.index(first['settings'])})"]
        yield "| " + " | ".join(cells) + " |"
    yield from explained(settings_seen)


def rival(line: dict[str, Any]) -> list[Any]:
    """What a run shares with the one that it is compared with."""
    settings = line["settings"]
    return [line["depth"], line["budget"], *(settings.get(name) for name in ("teacher", "valid", "device"))]


def alike(lines: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The runs that differ in their seed alone, together; in the order of depth, budget and arm."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        if line["kind"] == "run":
            place = [line["depth"], -(line["budget"] or 1), ARMS.index(line["arm"]), line["settings"]]
            rows.setdefault(json.dumps(place), []).append(line)
    return [rows[key] for key in sorted(rows, key=lambda key: json.loads(key)[:3])]


def explained(settings: list[dict[str, Any]]) -> Iterator[str]:
    """What each number of settings stands for."""
    yield ""
    for number, values in enumerate(settings, 1):
        yield f"({number}) " + ", ".join(f"{name} {value}" for name, value in values.items() if value not in ([], 0))


def spread(values: list[float]) -> str:
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
