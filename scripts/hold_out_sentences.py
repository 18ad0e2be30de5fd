"""Hold whole sentences out of a file of phrases, as SST-2's training file is one (Socher et al. 2013).

    python scripts/hold_out_sentences.py train.tsv --count 600 --seed 0    # writes train-rest.tsv and train-held.tsv

Its 67,349 rows are parts of about a tenth as many sentences. Nine of ten rows that are drawn at random stand word for
word in another row, so what `data.hold_out` draws there is not unseen, and settings that learn by heart look good on
it. Here a sentence is a row that stands in no longer one; what is held out are sentences, and every row that stands in
one of them leaves the rest.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from pathlib import Path

Words = tuple[str, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path, help="tab-separated: a line of names, then a text and its label")
    parser.add_argument("--count", type=int, default=600, help="sentences to hold out")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    head, *rows = options.train.read_text(encoding="utf-8").splitlines()
    held, rest = split([words_of(row) for row in rows], options.count, options.seed)
    for name, kept in (("held", held), ("rest", rest)):
        path = options.train.with_name(f"{options.train.stem}-{name}.tsv")
        path.write_text("\n".join([head, *(rows[i] for i in kept), ""]), encoding="utf-8")
        print(f"{path}: {len(kept):,} rows")


def words_of(row: str) -> Words:
    return tuple(row.rsplit("\t", 1)[0].split())


def split(texts: list[Words], count: int, seed: int) -> tuple[list[int], list[int]]:
    """The numbers of the held-out sentences, and of the texts that are no part of them; both in order."""
    seen: set[Words] = set()
    sentences = []
    for i in sorted(range(len(texts)), key=lambda i: -len(texts[i])):
        if texts[i] not in seen:
            sentences.append(i)
            seen.update(parts(texts[i]))
    if count >= len(sentences):
        raise SystemExit(f"--count: {count:,} of {len(sentences):,} sentences; leave some to train on")
    held = sorted(random.Random(seed).sample(sentences, count))
    gone = {part for i in held for part in parts(texts[i])}
    return held, [i for i, text in enumerate(texts) if text not in gone]


def parts(text: Words) -> Iterator[Words]:
    """Every run of words in ``text``, itself included."""
    for start in range(len(text)):
        for end in range(start + 1, len(text) + 1):
            yield text[start:end]


if __name__ == "__main__":
    main()
