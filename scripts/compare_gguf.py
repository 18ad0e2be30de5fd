"""How far llama.cpp is from transformers: one text, continued greedily by both, and the probabilities of every token.

    pip install xllamacpp gguf sentencepiece    # llama.cpp as a wheel, and what its converter needs
    python llama.cpp/convert_hf_to_gguf.py runs/mine/export/huggingface --outfile small.gguf --outtype f32
    python scripts/compare_gguf.py runs/mine/export/huggingface small.gguf --text "Once upon"

It prints one line of JSON: the tokens that both choose, and the largest difference of a probability's logarithm, over
the whole vocabulary and all steps. It ends with status 1 where the tokens differ, or the logarithms by more than 1e-4.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch
import transformers

TOLERANCE = 1e-4  # of a logarithm: float32 on both sides


def by_transformers(
    folder: str, text: str, count: int, trusted: bool = False
) -> tuple[list[int], list[int], torch.Tensor]:
    """The prompt's tokens, those that follow, and the logarithms before each of those (count, vocabulary)."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=trusted)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=trusted
    ).eval()
    prompt = tokenizer(text, return_tensors="pt")["input_ids"]
    ids, rows = prompt, []
    with torch.no_grad():
        for _ in range(count):
            rows.append(model(ids).logits[0, -1].log_softmax(-1))
            ids = torch.cat([ids, rows[-1].argmax().view(1, 1)], 1)
    return prompt[0].tolist(), ids[0, prompt.shape[1] :].tolist(), torch.stack(rows)


def by_llama_cpp(file: str, text: str, count: int, vocabulary: int) -> tuple[int, list[int], torch.Tensor]:
    """The same of llama.cpp; of the prompt, how many tokens it has."""
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path, settings.n_ctx, settings.n_parallel, settings.warmup = file, 256, 1, False
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    # its attention in one piece works on half the digits
    settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(settings)
    told = server.handle_completions({
        "prompt": text, "n_predict": count, "temperature": 0, "n_probs": vocabulary, "cache_prompt": False,
    })  # fmt: skip
    steps = told["choices"][0]["logprobs"]["content"]
    rows = torch.full((len(steps), vocabulary), float("-inf"))
    for row, step in zip(rows, steps, strict=True):
        for one in step["top_logprobs"]:
            row[one["id"]] = one["logprob"]
    return told["usage"]["prompt_tokens"], [step["id"] for step in steps], rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("file")
    parser.add_argument("--text", default="once upon a time")
    parser.add_argument("--tokens", type=int, default=12)
    parser.add_argument("--trust-remote-code", action="store_true", help="for a directory of --format deci")
    options = parser.parse_args()
    prompt, wanted, logs = by_transformers(options.folder, options.text, options.tokens, options.trust_remote_code)
    length, found, theirs = by_llama_cpp(options.file, options.text, options.tokens, logs.shape[1])
    apart = float((logs[: len(theirs)] - theirs).abs().max())
    equal = length == len(prompt) and found == wanted[: len(found)] and len(found) == options.tokens
    print(json.dumps({"prompt": prompt, "theirs": length, "transformers": wanted, "llama.cpp": found, "apart": apart}))
    raise SystemExit(0 if equal and apart <= TOLERANCE else 1)


if __name__ == "__main__":
    main()
