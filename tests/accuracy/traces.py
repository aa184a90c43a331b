"""The public traces that the bench ships extracts of; each file says its source, licence and what was changed."""

import csv
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

DATA = Path(__file__).parent / "data"
CONVERSATIONS = Path(__file__).parents[2] / "loadgen/workloads/azure_conv_2023.csv"
MOONCAKE_BLOCK = 512
MOONCAKE_TICK_S = 3.0


class Lengths(NamedTuple):
    """Tokens of one request."""

    prompt: int
    output: int


class Recorded(NamedTuple):
    """One request of the Mooncake trace: seconds from its start, lengths, and its prompt's blocks of 512 tokens."""

    at_s: float
    prompt: int
    output: int
    blocks: tuple[int, ...]


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; it belongs to this repository (see tests/accuracy/extract.py)")
    with path.open() as lines:
        return list(csv.DictReader(line for line in lines if not line.startswith("#")))


@lru_cache
def conversation_bins() -> tuple[list[Lengths], list[int]]:
    """Mean lengths of the load generator's joint bins of Azure's conversations of 2023, and their counts."""
    rows = _rows(CONVERSATIONS)
    counts = [int(row["count"]) for row in rows]
    means = [
        Lengths(round(int(row["input_tokens"]) / n), round(int(row["output_tokens"]) / n))
        for row, n in zip(rows, counts, strict=True)
    ]
    return means, counts


@lru_cache
def code() -> list[Lengths]:
    """Azure's code completions of 2023: long prompts, very short answers."""
    return _lengths("azure_code_2023.csv")


@lru_cache
def summarization() -> list[Lengths]:
    """arXiv papers to be summarized: long prompts, answers of a paragraph, here and there a long one."""
    return _lengths("arxiv_summarization.csv")


def _lengths(name: str) -> list[Lengths]:
    return [Lengths(int(row["input_tokens"]), int(row["output_tokens"])) for row in _rows(DATA / name)]


@lru_cache
def burstgpt() -> list[tuple[float, Lengths]]:
    """A night and a morning of BurstGPT: whole seconds, and lengths."""
    return [
        (float(row["second"]), Lengths(int(row["input_tokens"]), int(row["output_tokens"])))
        for row in _rows(DATA / "burstgpt.csv")
    ]


@lru_cache
def mooncake() -> list[Recorded]:
    """Conversations of the Mooncake trace, with what their prompts share."""
    return [
        Recorded(int(r["millisecond"]) / 1e3, int(r["input_tokens"]), int(r["output_tokens"]), _ids(r["blocks"]))
        for r in _rows(DATA / "mooncake.csv")
    ]


def _ids(ranges: str) -> tuple[int, ...]:
    pairs = (part.partition("-") for part in ranges.split())
    return tuple(one for low, _, high in pairs for one in range(int(low), int(high or low) + 1))
