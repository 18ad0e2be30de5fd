"""Language models of a Hugging Face directory read running text with their own tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import sslprune
from sslprune.cli import app
from sslprune.data import build_data, reopen
from sslprune.errors import DataError, RecipeError, RunError
from sslprune.models.build import build_model
from sslprune.models.huggingface import load_tokenizer, save_tokenizer
from sslprune.recipe import Recipe, load_recipe
from sslprune.report import Report
from sslprune.run.directory import RunDirectory
from sslprune.train.evaluate import evaluate
from sslprune.train.prepare import prepare

pytest.importorskip("transformers")
try:
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
except (ImportError, RuntimeError) as error:  # it imports torchvision where that is there, and fails with it
    pytest.skip(f"transformers cannot be imported: {error}", allow_module_level=True)

SUBJECTS, VERBS, OBJECTS = (
    ("Anna", "the cat", "a tiger"),
    ("sees", "follows", "unhinges"),
    ("a door", "the moon", "Bob"),
)
PLACES, STEPS = 24, 12
RECIPE = """
[run]
device = "cpu"
threads = 1
[model]
factory = "hf:causal-lm"
arguments = { path = "model" }
[data]
task = "language-modelling"
train = "train.txt"
test = "test.txt"
batch_size = 8
steps = 12
[[prune]]
kind = "neurons"
[[prune]]
kind = "heads"
[budget]
macs = 0.8
round_to = 1
[schedule]
dense = "10ep"
sparse = "30it"
heal = "10it"
[lasso]
decay = 8
[train]
optimizer = "adamw"
lr = 1e-2
[bench]
threads = [1]
"""


def sentences(count: int, seed: int) -> list[str]:
    random = np.random.default_rng(seed)
    return [" ".join(str(random.choice(words)) for words in (SUBJECTS, VERBS, OBJECTS)) + "." for _ in range(count)]


def tokenizer_of(lines: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level pairs, as GPT-2 has them, of a few lines."""
    from tokenizers import ByteLevelBPETokenizer

    made = ByteLevelBPETokenizer()
    made.train_from_iterator(lines, vocab_size=300, special_tokens=["<|endoftext|>"])
    return PreTrainedTokenizerFast(tokenizer_object=made._tokenizer, eos_token="<|endoftext|>")


def write(folder: Path, kind: str) -> Path:
    """A model directory with its tokenizer, data, and a recipe beside them."""
    torch.manual_seed(0)
    tokenizer = tokenizer_of(sentences(200, 0))
    size = dict(vocab_size=len(tokenizer), bos_token_id=None, eos_token_id=tokenizer.eos_token_id)
    model: Any
    if kind == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(**size, n_positions=PLACES, n_embd=16, n_layer=1, n_head=4, n_inner=24))
    else:
        llama = LlamaConfig(
            **size, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4,
            num_key_value_heads=4, max_position_embeddings=PLACES,
        )  # fmt: skip
        model = LlamaForCausalLM(llama)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    for name, count in (("train", 200), ("test", 20)):
        (folder / f"{name}.txt").write_text("\n".join(sentences(count, count)) + "\n")
    (folder / "lm.toml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("gpt2"), "gpt2")


def recipe(folder: Path, *sets: str) -> Recipe:
    return load_recipe(folder / "lm.toml", sets)


def invoke(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def check_goes_on(run: RunDirectory, answer: dict[str, Any]) -> None:
    """What is added is what the repacked program finds likeliest, token after token; drawn ones differ by seed."""
    small, encoder = sslprune.load(run.path), reopen(run.recipe(), run.tokenizer, (None, None))
    ids = encoder.begun("Anna sees")
    first = len(ids)
    while len(ids) < min(first + 20, PLACES) and (len(ids) == first or ids[-1] != encoder.end):
        with torch.no_grad():
            logits = small(torch.tensor([ids]))["logits"][0, -1]
        ids.append(int(logits[: len(encoder.tokenizer)].argmax()))  # type: ignore[attr-defined]
    assert answer["repacked"]["goes_on"] == encoder.text(ids[first:]) and answer["repacked"]["tokens_per_second"] > 0
    drawn = [
        json.loads(
            invoke("predict", run, "Anna sees", "--tokens", 9, "--temperature", 5, "--seed", seed, "--json").stdout
        )
        for seed in (1, 1, 2)
    ]
    texts = [answers[0]["dense"]["goes_on"] for answers in drawn]
    assert texts[0] == texts[1] != texts[2]
    assert "tokens/s" in invoke("predict", run, "Anna sees", "--tokens", 3).stdout


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_whole_road(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WARM_UP", 0.005), ("ENOUGH", 0.01)):
        monkeypatch.setattr(f"sslprune.bench.timing.{name}", value)
    write(tmp_path, kind)
    with_cache = ("--set", "export.decoder=true", "--set", "export.deci=true") if kind == "llama" else ()
    result = invoke("run", tmp_path / "lm.toml", "--run", tmp_path / "run", *with_cache)
    assert result.exit_code == 0, result.output
    assert "tokens of model; loss and perplexity are per token, not per word" in " ".join(result.stderr.split())
    run = RunDirectory(tmp_path / "run")
    report = Report.load(run.report)
    assert report.repacked.macs < 0.81 * report.dense.macs
    assert [(row.part, row.prompt) for row in report.decoding] == [("prompt", PLACES - 1), ("token", PLACES - 1)][
        : len(with_cache)
    ]
    assert ("each token after" in result.output) == bool(with_cache) == run.decoder.is_file()
    assert ("for llama.cpp and vLLM" in result.output) == bool(with_cache) == (run.deci / "tokenizer.json").is_file()
    if with_cache:
        shutil.rmtree(run.deci)
        alone = invoke("export", run, "--format", "deci", "--json")
        assert alone.exit_code == 0 and json.loads(alone.stdout)["deci"] == str(run.deci), alone.output
        assert (run.deci / "modeling_deci.py").is_file()
    assert 1 < report.repacked.metrics["perplexity"] < 30  # of 300 tokens, in sentences of a few forms
    shutil.rmtree(tmp_path / "model")  # the run has its own tokenizer
    (tmp_path / "train.txt").unlink()
    result = invoke("predict", run, "Anna sees", "the cat", "", "--json")
    assert result.exit_code == 0, result.output
    answers = json.loads(result.stdout)
    for answer in answers:
        words = answer["repacked"]["next_words"]
        assert 1 < len(words) <= 5 and 0 < sum(words.values()) <= 1.0001
    best = {answer["sample"]: next(iter(answer["dense"]["next_words"])) for answer in answers}
    assert best["Anna sees"] in (" the", " a", " Bob")
    check_goes_on(run, answers[0])
    said = invoke("predict", run, "Anna sees " * 30)
    assert said.exit_code == 1 and f"takes at most {PLACES}" in said.stderr, said.output


def test_a_tokenizer_is_written_in_words_that_transformers_4_knows(tmp_path: Path) -> None:
    """It has no TokenizersBackend, and takes a list of ``extra_special_tokens`` for a table."""
    tokenizer = tokenizer_of(sentences(20, 0))
    tokenizer.add_special_tokens({"extra_special_tokens": ["<a>", "<b>"]})
    save_tokenizer(tokenizer, tmp_path)
    said = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert said["tokenizer_class"] == "PreTrainedTokenizerFast" and "extra_special_tokens" not in said
    again = load_tokenizer(str(tmp_path))
    assert again.all_special_tokens == tokenizer.all_special_tokens and {"<a>", "<b>"} < set(again.all_special_tokens)
    assert again("Anna <a> sees")["input_ids"] == tokenizer("Anna <a> sees")["input_ids"]


def test_the_text_is_tokenised_as_it_stands(folder: Path) -> None:
    data = build_data(recipe(folder))
    tokenizer = data.encoder.tokenizer  # type: ignore[attr-defined]
    batches: list[Any] = list(data.test)
    ((words,), targets), *_ = batches
    assert words.shape == (1, STEPS) and data.sequence == PLACES
    assert words[0, 0] == tokenizer.eos_token_id
    text = (folder / "test.txt").read_text()
    assert text.startswith(tokenizer.decode(words[0, 1:]))
    assert torch.equal(words[0, 1:], targets[0, :-1])
    every = [int(i) for _, given in batches for i in given.flatten() if i >= 0]
    assert tokenizer.decode(every) == text
    first: Any = next(data.train.epoch(0))
    assert first[0][0].shape == (8, STEPS)


def test_windows_that_overlap_give_the_perplexity_with_a_stride(folder: Path) -> None:
    """Every token is predicted once, from the tokens before it in its window; by hand, window after window."""
    made = recipe(folder, "data.stride=5")
    data, model = build_data(made), build_model(made.model)[0].eval()
    tokenizer = data.encoder.tokenizer  # type: ignore[attr-defined]
    text = (folder / "test.txt").read_text()
    ids = torch.tensor([tokenizer.eos_token_id, *tokenizer(text)["input_ids"]])
    losses, done = [], 0
    for begin in range(0, len(ids) - 1, 5):
        window, wanted = ids[begin : begin + STEPS], ids[begin + 1 : begin + 1 + STEPS]
        with torch.no_grad():
            logits = model(window[None, : len(wanted)]).logits[0].double()
        new = begin + len(wanted) - done
        losses += torch.nn.functional.cross_entropy(logits, wanted, reduction="none")[len(wanted) - new :].tolist()
        done = begin + len(wanted)
        if done == len(ids) - 1:
            break
    assert len(losses) == len(ids) - 1
    found = evaluate(model, data.test, data.task)["perplexity"]
    assert found == pytest.approx(np.exp(np.mean(losses)), rel=1e-5)
    assert found != evaluate(model, build_data(recipe(folder)).test, data.task)["perplexity"]
    with pytest.raises(RecipeError, match=r"data.*stride 13 is beyond steps 12"):
        recipe(folder, "data.stride=13")


def test_what_does_not_fit(folder: Path, tmp_path: Path) -> None:
    model: Any = build_model(recipe(folder).model)[0]
    build_data(recipe(folder)).check(model)
    with pytest.raises(DataError, match=rf"data.steps: 30 tokens, the model takes {PLACES}; lower it"):
        build_data(recipe(folder, "data.steps=30")).check(model)
    with pytest.raises(RecipeError, match="vocabulary and tokenizer both say what a word is"):
        recipe(folder, "data.vocabulary=words.txt", "data.tokenizer=model")
    other = tmp_path / "other"
    tokenizer_of(sentences(50, 1)).save_pretrained(other)
    settings = json.loads((other / "tokenizer.json").read_text())
    settings["added_tokens"].append({**settings["added_tokens"][0], "id": 300, "content": "<more>"})
    (other / "tokenizer.json").write_text(json.dumps(settings))
    with pytest.raises(DataError, match=r"data.tokenizer: .*other has \d+ tokens, the model's embedding"):
        build_data(recipe(folder, f"data.tokenizer={other}")).check(model)
    bare = tmp_path / "bare"
    model.save_pretrained(bare)
    with pytest.raises(DataError, match=r"data\.tokenizer: .*bare has no tokenizer; save it"):
        build_data(recipe(folder, f"model.arguments.path={bare}"))
    with pytest.raises(RunError, match="no tokenizer there; repack this run again"):
        reopen(recipe(folder), tmp_path / "gone", (None, None))


def test_words_of_its_own_are_still_read(folder: Path, tmp_path: Path) -> None:
    """A model whose words a file names by their number is served by it, tokenizer or not."""
    (tmp_path / "words.txt").write_text("\n".join(["<eos>", "<unk>", "Anna"]))
    data = build_data(recipe(folder, f"data.vocabulary={tmp_path / 'words.txt'}"))
    assert data.num_ids == 3
    data.check(build_model(recipe(folder).model)[0])


@pytest.mark.parametrize("tied", [True, False])
def test_a_vocabulary_of_the_tokens_that_the_text_uses(tied: bool, tmp_path: Path) -> None:
    write(tmp_path, "llama")
    config: Any = LlamaConfig.from_pretrained(tmp_path / "model")
    config.tie_word_embeddings, config.eos_token_id = tied, [config.eos_token_id]
    torch.manual_seed(1)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    few = [line for line in sentences(200, 200) if "tiger" not in line]
    (tmp_path / "train.txt").write_text("\n".join(few) + "\n")
    asked = recipe(tmp_path, "data.keep_tokens=true", "export.huggingface=true", "schedule.dense=0it")
    data, (whole, _) = build_data(asked), build_model(asked.model)
    assert data.tokens is not None and data.tokens.said
    old, rows = torch.tensor(data.tokens.numbers), len(data.tokens.numbers)
    assert rows < config.vocab_size
    ids: Any = next(iter(data.test))[0][0]  # type: ignore[index]
    cut: Any = prepare(whole.eval(), data).model
    with torch.no_grad():
        torch.testing.assert_close(cut(ids).logits, whole(old[ids]).logits[..., old])
    assert cut.lm_head.weight.shape[0] == cut.config.vocab_size == rows
    assert (cut.lm_head.weight is cut.model.embed_tokens.weight) == tied
    assert old[cut.generation_config.eos_token_id].tolist() == config.eos_token_id
    if not tied:
        return

    run = RunDirectory(tmp_path / "run")
    (tmp_path / "lm.toml").write_text(asked.to_toml())
    told = invoke("run", tmp_path / "lm.toml", "--run", run, "--force")
    assert told.exit_code == 0, told.output
    assert f"{rows} of {config.vocab_size} tokens stay" in told.output
    report = Report.load(run.report)
    assert report.whole is not None and report.whole.parameters == sum(p.numel() for p in whole.parameters())
    folder = run.path / "export" / "huggingface"
    served, tokenizer = LlamaForCausalLM.from_pretrained(folder), PreTrainedTokenizerFast.from_pretrained(folder)
    assert len(tokenizer) == rows and served.generation_config.eos_token_id == [tokenizer.eos_token_id]
    text = tokenizer("Anna follows Bob.", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(served(text).logits, sslprune.load(run.path)(text)["logits"], atol=1e-5, rtol=1e-4)


def test_a_model_that_carries_its_state_loses_the_same_rows(tmp_path: Path) -> None:
    write(tmp_path, "llama")
    (tmp_path / "train.txt").write_text("\n".join(line for line in sentences(200, 200) if "tiger" not in line) + "\n")
    lstm = 'model={ factory = "sslprune.zoo:lstm_lm", arguments = { vocabulary = 300, hidden = 8 } }'
    sets = (lstm, 'data.tokenizer="model"', "data.keep_tokens=true", 'prune=[{kind="hidden"}]')
    asked = recipe(tmp_path, *sets)
    data, (whole, _) = build_data(asked), build_model(asked.model)
    assert data.tokens is not None
    old = torch.tensor(data.tokens.numbers)
    ids: Any = next(iter(data.test))[0][0]  # type: ignore[index]
    cut: Any = prepare(whole.eval(), data).model
    state = cut.initial_state(len(ids))
    assert len(cut.decoder.bias) == len(cut.embedding.weight) == len(old) < 300
    torch.testing.assert_close(cut(ids, state)[0], whole(old[ids], state)[0][..., old])


def test_words_of_a_text_are_all_that_there_are(tmp_path: Path) -> None:
    (tmp_path / "words.toml").write_text(RECIPE.replace("steps = 12", "steps = 12\nkeep_tokens = true"))
    for name in ("train", "test"):
        (tmp_path / f"{name}.txt").write_text("\n".join(sentences(20, 1)))
    asked = load_recipe(
        tmp_path / "words.toml", ['model={ factory = "sslprune.zoo:lstm_lm" }', 'prune=[{kind="hidden"}]']
    )
    with pytest.raises(DataError, match=r"^data\.keep_tokens: the text is read by words"):
        build_data(asked)
