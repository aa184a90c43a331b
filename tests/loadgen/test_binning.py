"""Bin tables made out of traces."""

import lzma
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.binning import INPUT_EDGES, OUTPUT_EDGES, derive, edges_around, main, make_bins, read_trace, table_lines
from loadgen.bins import load_workload, read_table
from loadgen.errors import WorkloadError

LENGTHS = st.integers(1, 3_000_000)


def test_edges_are_half_octaves_and_octaves() -> None:
    """The edges a study of eleven traces recommends."""
    assert INPUT_EDGES[:12] == (1, 16, 23, 32, 45, 64, 91, 128, 181, 256, 362, 512)
    assert INPUT_EDGES[-3:] == (524288, 741455, 1048576)
    assert OUTPUT_EDGES[0] == 1
    assert OUTPUT_EDGES[-1] == 32768


@pytest.mark.parametrize(
    ("value", "around"),
    [
        (1, (1, 16)),
        (15, (1, 16)),
        (16, (16, 23)),
        (1_048_575, (741_455, 1_048_576)),
        (5_000_000, (4_194_304, 8_388_608)),
    ],
)
def test_bins_are_half_open_and_have_no_end(value: int, around: tuple[int, int]) -> None:
    """Past the last edge octaves continue, so no request is clamped or dropped."""
    assert edges_around(value, INPUT_EDGES) == around


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(LENGTHS, LENGTHS), min_size=1, max_size=60))
def test_sums_stay_exact_through_bins_and_file(pairs: list[tuple[int, int]]) -> None:
    """Whatever the trace, the table read back has its count, tokens, squares and products, in whole numbers."""
    bins = read_table(table_lines(make_bins(pairs), ["a note"]), "t").bins

    assert sum(b.count for b in bins) == len(pairs)
    assert sum(b.input_tokens for b in bins) == sum(i for i, _ in pairs)
    assert sum(b.output_tokens for b in bins) == sum(o for _, o in pairs)
    assert sum(b.input_squares for b in bins) == sum(i * i for i, _ in pairs)
    assert sum(b.output_squares for b in bins) == sum(o * o for _, o in pairs)
    assert sum(b.products for b in bins) == sum(i * o for i, o in pairs)


@pytest.mark.parametrize(
    "header",
    [
        "TIMESTAMP,ContextTokens,GeneratedTokens",
        "timestamp, context_tokens, generated_tokens",
        "Timestamp,Request tokens,Response tokens",
        "time,input_length,output_length",
    ],
)
def test_columns_are_found_by_close_variants_of_their_names(header: str) -> None:
    """Public traces name the same three things differently."""
    trace = read_trace([header, "0,374,44", "10,396,109"])

    assert trace.pairs == ((374, 44), (396, 109))
    assert trace.span_s == 10


def test_the_order_of_columns_does_not_matter() -> None:
    """Later releases of a trace insert columns in the middle."""
    trace = read_trace(["GeneratedTokens,Model,ContextTokens", "44,GPT-4,374"])

    assert trace.pairs == ((374, 44),)
    assert trace.span_s is None


def test_times_with_seven_digits_are_read() -> None:
    """Azure's times have 100 ns digits."""
    trace = read_trace(
        [
            "TIMESTAMP,ContextTokens,GeneratedTokens",
            "2023-11-16 18:15:46.6805900,1,2",
            "2023-11-16 18:15:50.9951690,3,4",
        ]
    )

    assert trace.span_s == pytest.approx(4.314579)


def test_rows_without_tokens_are_left_out_and_counted() -> None:
    """Zero tokens mark a failed request; the table says how many there were."""
    lines = derive(read_trace(["ContextTokens,GeneratedTokens", "10,5", "0,0", "7,0"]), ["source: here"])

    assert lines[0] == "# source: here"
    assert "1 requests" in lines[1]
    assert "2 rows without tokens left out" in lines[1]
    assert read_table(lines, "t").count == 1


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["a,b", "1,2"], "line 1: need an input and an output column.*the header has: a, b"),
        ([], "the header has: nothing"),
        (["ContextTokens,GeneratedTokens", "1,2", "x,2"], "line 3: could not convert"),
        (["ContextTokens,GeneratedTokens", "1"], "line 2"),
        (["ContextTokens,GeneratedTokens", "-1,2"], "line 2: '-1' is not a number of tokens"),
    ],
)
def test_a_wrong_trace_is_refused_with_its_line(lines: list[str], said: str) -> None:
    """The message says where to look and what is wrong."""
    with pytest.raises(WorkloadError, match=said):
        read_trace(lines)


def test_the_command_makes_a_table_that_can_be_replayed(tmp_path: Path) -> None:
    """From a compressed trace to a workload by path."""
    trace, table = tmp_path / "trace.csv.xz", tmp_path / "my_table.csv"
    trace.write_bytes(lzma.compress(b"ContextTokens,GeneratedTokens\r\n374,44\r\n396,109\r\n"))

    main([str(trace), "-o", str(table), "--note", "source: mine"])

    workload = load_workload(str(table))
    assert workload.name == "my-table"
    assert workload.notes[0] == "source: mine"
    assert sum(b.input_tokens for b in workload.bins) == 770


def test_the_command_ends_with_a_sentence_where_it_cannot_read(tmp_path: Path) -> None:
    """No traceback for a file that is not there."""
    with pytest.raises(SystemExit, match=r"none\.csv: .*No such file"):
        main([str(tmp_path / "none.csv"), "-o", str(tmp_path / "out.csv")])
