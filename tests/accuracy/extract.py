"""`python -m tests.accuracy.extract TRACES`: makes the small extracts of public traces in `data/` from the full ones.

TRACES is a folder that holds azure_2023_code.csv.xz, mooncake_conversation.jsonl.xz, burstgpt1_head379.csv and
arxiv_summarization_llama2_lengths.csv.xz as their publishers give them. The bench itself reads the extracts only; this
is how they came about.
"""

import csv
import json
import lzma
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data"
EVERY_CODE_ROW = 22
EVERY_SUMMARY = 70
EVERY_CONVERSATION = 16
MOONCAKE_MS = 1_800_000
LONGEST = 32_000

AZURE = """\
# source: Azure LLM inference trace 2023, code (AzureLLMInferenceTrace_code.csv), github.com/Azure/AzurePublicDataset
# licence: CC-BY-4.0, creativecommons.org/licenses/by/4.0
# attribution: Patel et al., Splitwise: Efficient Generative LLM Inference Using Phase Splitting, ISCA 2024; Microsoft
# changed: every 22nd request only; times left out
"""
ARXIV = """\
# source: lengths of arXiv papers and their summaries, github.com/microsoft/vidur
#   (data/processed_traces/arxiv_summarization_stats_llama2_tokenizer_filtered_v2.csv)
# licence: MIT, opensource.org/license/mit, Copyright (c) Microsoft Corporation
# attribution: Agrawal et al., Vidur: A Large-Scale Simulation Framework for LLM Inference, MLSys 2024
# changed: every 70th row only; lengths only
# tokens of Llama 2; the publisher has left out what has more than 4,096 tokens in all
"""
BURSTGPT = """\
# source: BurstGPT (BurstGPT_1.csv), github.com/HPMLL/BurstGPT
# licence: CC-BY-4.0, creativecommons.org/licenses/by/4.0
# attribution: Wang et al., BurstGPT: A Real-World Workload Dataset to Optimize LLM Serving Systems, KDD 2025
# changed: the first 379 requests only, those that failed left out; model and log type left out
# not representative of the whole trace: one night and one morning
"""
MOONCAKE = """\
# source: Mooncake conversation trace (FAST25-release/traces), github.com/kvcache-ai/Mooncake
# licence: Apache-2.0, www.apache.org/licenses/LICENSE-2.0
# attribution: Qin et al., Mooncake: A KVCache-centric Disaggregated Architecture for LLM Serving, FAST 2025
# changed: every 16th conversation of the first half hour, prompts of at most 32,000 tokens; ids renumbered, as ranges
# a block holds 512 prompt tokens, its id stands for everything up to its end; times are whole multiples of 3 s
"""


def code(traces: Path) -> Iterator[list[object]]:
    """(input_tokens, output_tokens)."""
    with lzma.open(traces / "azure_2023_code.csv.xz", "rt") as lines:
        for number, row in enumerate(csv.DictReader(lines)):
            if number % EVERY_CODE_ROW == 0 and int(row["GeneratedTokens"]):
                yield [row["ContextTokens"], row["GeneratedTokens"]]


def summarization(traces: Path) -> Iterator[list[object]]:
    """(input_tokens, output_tokens)."""
    with lzma.open(traces / "arxiv_summarization_llama2_lengths.csv.xz", "rt") as lines:
        for number, row in enumerate(csv.DictReader(lines)):
            if number % EVERY_SUMMARY == 0:
                yield [row["num_prefill_tokens"], row["num_decode_tokens"]]


def burstgpt(traces: Path) -> Iterator[list[object]]:
    """(second, input_tokens, output_tokens)."""
    with (traces / "burstgpt1_head379.csv").open() as lines:
        for row in csv.DictReader(lines):
            if int(row["Response tokens"]):
                yield [row["Timestamp"], row["Request tokens"], row["Response tokens"]]


def mooncake(traces: Path) -> Iterator[list[object]]:
    """(millisecond, input_tokens, output_tokens, blocks); a conversation is what shares more than the first block."""
    with lzma.open(traces / "mooncake_conversation.jsonl.xz", "rt") as lines:
        rows = [row for line in lines if (row := json.loads(line))["timestamp"] < MOONCAKE_MS]
    numbers: dict[int, int] = {}
    conversations: dict[int, int] = {}
    for row in rows:
        ids = row["hash_ids"]
        conversation = conversations.setdefault(ids[1] if len(ids) > 1 else -row["timestamp"], len(conversations))
        if conversation % EVERY_CONVERSATION == 0 and row["input_length"] <= LONGEST:
            short = [numbers.setdefault(one, len(numbers)) for one in ids]
            yield [row["timestamp"], row["input_length"], row["output_length"], _ranges(short)]


def _ranges(ids: list[int]) -> str:
    parts: list[list[int]] = []
    for one in ids:
        if parts and one == parts[-1][1] + 1:
            parts[-1][1] = one
        else:
            parts.append([one, one])
    return " ".join(f"{low}-{high}" if high > low else str(low) for low, high in parts)


def _write(name: str, head: str, columns: str, rows: Iterable[list[Any]]) -> None:
    DATA.mkdir(exist_ok=True)
    with (DATA / name).open("w", newline="") as file:
        file.write(head)
        csv.writer(file, lineterminator="\n").writerows([columns.split(","), *rows])


def main() -> int:
    """0, or 1 when the traces are not there."""
    traces = Path(sys.argv[1]) if len(sys.argv) == 2 else None
    if traces is None or not traces.is_dir():
        print(__doc__, file=sys.stderr)
        return 1
    _write("azure_code_2023.csv", AZURE, "input_tokens,output_tokens", code(traces))
    _write("arxiv_summarization.csv", ARXIV, "input_tokens,output_tokens", summarization(traces))
    _write("burstgpt.csv", BURSTGPT, "second,input_tokens,output_tokens", burstgpt(traces))
    _write("mooncake.csv", MOONCAKE, "millisecond,input_tokens,output_tokens,blocks", mooncake(traces))
    return 0


if __name__ == "__main__":
    sys.exit(main())
