"""A run's language model as ONNX with past keys and values, dense and repacked, and how long prompt and token take."""

from __future__ import annotations

from torch import nn

from sslprune.bench import Contender, compare
from sslprune.export.decoder import NOTHING, PAST, SEQUENCE, export_decoder
from sslprune.models.build import load_trained
from sslprune.models.huggingface import max_positions
from sslprune.recipe import Recipe
from sslprune.removal.factors import fold_
from sslprune.removal.plan import read_plan
from sslprune.report import Decoding, Report
from sslprune.run.directory import RunDirectory
from sslprune.run.written import write_report
from sslprune.show.terminal import Show

PROMPT = 128  # tokens, where the recipe names no lengths


def export_decoders(directory: RunDirectory, show: Show) -> list[Decoding]:
    """The decoders of a run that is repacked, by themselves; their times also stand in its report, if there is one.

    Raises ExportError, and writes nothing, as `sslprune.export_decoder` does.
    """
    directory.require("repack")
    recipe = directory.recipe()
    show.stage("export", f"{recipe.name}: ONNX with past keys and values, held against the models without")
    with directory.writing():
        found = write_decoders(directory, recipe, fold_(load_trained(recipe.model, directory.dense)), show)
        if directory.report.is_file():
            write_report(Report.load(directory.report).model_copy(update={"decoding": found}), directory)
    return found


def write_decoders(directory: RunDirectory, recipe: Recipe, dense: nn.Module, show: Show) -> list[Decoding]:
    """RUN/export/decoder.onnx and dense-decoder.onnx, each held against its model without a cache; their times.

    Raises ExportError, as `export_decoder` does.
    """
    pairs = (
        (directory.dense_decoder, dense, NOTHING),
        (directory.decoder, load_trained(recipe.model, directory.masked), read_plan(directory.plan)),
    )
    with show.progress("exporting the decoder", len(pairs)) as bar:
        for path, model, plan in pairs:
            bar.advance(0, file=path.name)
            export_decoder(model, path, plan, opset=recipe.export.opset)
            bar.advance()
    return _timed(directory, recipe, max_positions(getattr(dense, "config", None)), show)


def _timed(directory: RunDirectory, recipe: Recipe, longest: int | None, show: Show) -> list[Decoding]:
    """The time of a prompt, and of one more token after it; one text at a time."""
    models = [Contender("dense", onnx=directory.dense_decoder), Contender("repacked", onnx=directory.decoder)]
    lengths = dict.fromkeys(recipe.bench.lengths or [PROMPT])
    prompts = dict.fromkeys(min(length, (longest or length + 1) - 1) for length in lengths)
    found: list[Decoding] = []
    with show.progress("timing the decoder", 2 * len(prompts)) as bar:
        for prompt in prompts:
            for part, steps, past in (("prompt", prompt, 0), ("token", 1, prompt)):
                times = compare(
                    models,
                    dims={SEQUENCE: steps, PAST: past},
                    threads=recipe.bench.threads,
                    repetitions=recipe.bench.repetitions,
                )
                for rows in zip(times.dense, times.repacked, times.speedup, strict=True):
                    values = dict(zip(("dense", "repacked", "speedup"), rows, strict=True))
                    found.append(Decoding.model_validate({"part": part, "prompt": prompt, **values}))
                bar.advance()
    return found
