"""The command that asks the models of a run something."""

from __future__ import annotations

from typing import Annotated

import typer

from sslprune.cli.guard import guarded
from sslprune.cli.options import Debug, Json, RunFolder, SeedOption, TemperatureOption, TokensOption
from sslprune.cli.parts import print_json


@guarded
def predict(
    run: RunFolder,
    samples: Annotated[list[str], typer.Argument(metavar="SAMPLE...", help="A sentence, a picture, or a .txt file.")],
    tokens: TokensOption = 20,
    temperature: TemperatureOption = 0.0,
    seed: SeedOption = 0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Ask the dense and the repacked model of a run the same thing: both answers, with their times.

    A language model goes on from the sentence.

    Example: sslprune predict runs/minilm-sst2 "a charming and often affecting journey"
    """
    from sslprune.run.generate import Sampling
    from sslprune.run.predict import predict_run, side_by_side

    answers = predict_run(run, samples, sampling=Sampling(tokens, temperature, seed))
    print_json([answer.values() for answer in answers]) if as_json else print(side_by_side(answers))
