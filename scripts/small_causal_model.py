"""A small causal model of transformers, with a tokenizer that llama.cpp's converter accepts, for text of one's own.

    python scripts/small_causal_model.py train.txt out --seed 0

Mistral's class: Llama's architecture, and it loads any number of heads. The tokenizer is of Llama 2's make: pairs of
letters, and bytes for what it never saw. The weights are random: `sslprune train` trains them (docs/serving.md).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers

SPECIAL = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{value:02X}>" for value in range(256)]


def tokenizer_of(texts: list[str], size: int) -> transformers.PreTrainedTokenizerFast:
    """Pairs of letters of ``texts`` up to ``size`` tokens, bytes among them."""
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    words = [word for text in texts for word in text.split()]  # pairs do not reach over words
    made.train_from_iterator(
        words, trainers.BpeTrainer(vocab_size=size, special_tokens=SPECIAL + BYTES, show_progress=False)
    )
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vocabulary", type=int, default=2048)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    options = parser.parse_args()
    tokenizer = tokenizer_of(options.text.read_text().splitlines(), options.vocabulary)
    torch.manual_seed(options.seed)
    config = transformers.MistralConfig(
        vocab_size=len(tokenizer), hidden_size=options.width, intermediate_size=3 * options.width,
        num_hidden_layers=options.layers, num_attention_heads=8, num_key_value_heads=8, head_dim=options.width // 8,
        max_position_embeddings=512, sliding_window=None, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = transformers.MistralForCausalLM(config)
    model.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    print(f"{options.out}: {sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer):,} tokens")


if __name__ == "__main__":
    main()
