"""The pure parts of the GPU runs, which need no GPU: arithmetic, the reader's file, the page of results."""

import re
from pathlib import Path

import pytest

from proxy.errors import MeterUnavailable
from proxy.meters import nvml_driver
from tests.gpu.__main__ import arguments, main
from tests.gpu.arithmetic import Curve, OutsideCurve, Stretch, interval, line, marginal_j
from tests.gpu.dummy_model import SHAPES, VOCABULARY, config, make, tokenizer
from tests.gpu.edges import CounterFell, parsed
from tests.gpu.page import NO_GPU, NOT_RUN, PARTS, Outcome, page, shown, table, write
from tests.gpu.plan import SHORT, WHOLE, plan
from tests.gpu.steps import series
from tests.gpu.test_marginal import order, paired

HERE = Path(__file__).parent
MS = 1_000_000


def test_a_line_is_found_through_its_own_points() -> None:
    """Points on a line give that line, R2 1 and no error."""
    found = line([(x, 3.3 + 0.065 * x) for x in (1, 2, 4, 64)])
    assert found.fixed == pytest.approx(3.3)
    assert found.slope == pytest.approx(0.065)
    assert found.r2 == pytest.approx(1)
    assert found.worst == pytest.approx(0, abs=1e-12)


def test_a_bent_curve_scores_less() -> None:
    """R2 and the largest error tell a parabola from a line, worked out by hand."""
    found = line([(0, 1), (1, 2), (2, 5)])
    assert [found.fixed, found.slope] == pytest.approx([2 / 3, 2])
    assert found.r2 == pytest.approx(1 - (2 / 3) / (26 / 3))
    assert found.worst == pytest.approx(1 / 3)


def test_two_batches_make_no_line() -> None:
    """Through two points every line is perfect, so none is drawn."""
    with pytest.raises(ValueError, match="three different"):
        line([(1, 1), (2, 2), (2, 2.1)])


def test_an_interval_is_students() -> None:
    """Five values with standard deviation 1: 2.776 / sqrt(5) to either side."""
    found = interval([-1.2649110640673518, -0.6324555320336759, 0, 0.6324555320336759, 1.2649110640673518])
    assert found.mean == pytest.approx(0)
    assert found.half == pytest.approx(2.776 / 5**0.5)
    assert [found.low, found.high] == pytest.approx([-found.half, found.half])
    with pytest.raises(ValueError, match="one value"):
        interval([1.0])


def test_a_curve_is_read_between_its_points() -> None:
    """A straight line between edges, the edges themselves, and nothing beyond them."""
    curve = Curve([0, 100 * MS, 200 * MS, 310 * MS], [0, 10, 30, 30.5])
    assert curve.at(50 * MS) == 5
    assert curve.at(100 * MS) == 10
    assert curve.between(50 * MS, 150 * MS) == 15
    assert curve.within(90 * MS, 210 * MS) == (100 * MS, 200 * MS)
    assert curve.within(0, 310 * MS) == (0, 310 * MS)
    assert curve.period_s() == pytest.approx(0.1)
    for outside in (-1, 311 * MS):
        with pytest.raises(OutsideCurve):
            curve.at(outside)
    for sparse in ((110 * MS, 290 * MS), (20 * MS, 250 * MS)):
        with pytest.raises(OutsideCurve):
            curve.within(*sparse)


def test_the_readers_file_becomes_edges() -> None:
    """Millijoules become joules, the first look is no edge, and a line still being written does not count."""
    found = parsed("5 1000\n100 1500\n200 2500\n300 31")
    assert found == Curve([100, 200], [1.5, 2.5])
    assert parsed("") == Curve([], [])


def test_a_counter_that_falls_ends_the_run() -> None:
    """A driver that was reloaded in between makes the run worthless, and is named."""
    with pytest.raises(CounterFell, match="from 1500 to 3 mJ"):
        parsed("5 1000\n100 1500\n200 3\n")


def test_the_marginal_energy_leaves_the_fixed_part_out() -> None:
    """Steps of 5 J + 0.1 J a sequence: requests of 200 tokens beside 30 answers cost 20 J each, at any speed."""
    alone = Stretch(joules=1000 * (5 + 0.1 * 30), steps=1000, seconds=10)
    beside = Stretch(joules=800 * (5 + 0.1 * 50), steps=800, seconds=10, added=800 * 20 / 200)
    assert marginal_j(alone, beside) == pytest.approx(20)


def test_every_second_pair_is_turned_round() -> None:
    """A drift that is steady over the stretches cancels over two pairs."""
    assert order(3) == [False, True, True, False, False, True]
    drifting = [(on, Stretch(100 + 3 * i + 7 * on, 10, 1, 10)) for i, on in enumerate(order(2))]
    assert sum(paired(drifting)) / 2 == pytest.approx(0.7)


def test_a_metric_is_summed_over_its_labels() -> None:
    """Counters of all engines of a server; a metric that is not there is an error and not 0."""
    text = '# HELP vllm:a_count x\nvllm:a_count{engine="0"} 3.0\nvllm:a_count{engine="1"} 4.0\nvllm:a 9\n'
    assert series(text, "a_count") == 7
    assert series(text, "a") == 9
    with pytest.raises(LookupError, match="no vllm:b"):
        series(text, "b")


def test_the_short_run_fits_into_ten_minutes() -> None:
    """With two minutes for the engine's start, and less the cached kinds and the second server, which are left out."""
    first = [part.test for part in PARTS if part.test != "test_the_step_log_costs_nothing"]
    half = [test for test in first if not test.endswith(("[context]", "[cached]"))]
    assert SHORT.warm_s + sum(SHORT.needs_s(test) for test in half) < 8 * 60
    assert WHOLE.warm_s + sum(WHOLE.needs_s(part.test) for part in PARTS) < 40 * 60
    assert all(SHORT.needs_s(part.test) > 0 for part in PARTS)
    assert (plan(9), plan(30)) == (SHORT, WHOLE)
    assert min(SHORT.window_s, WHOLE.window_s) >= 5
    assert min(SHORT.pairs, WHOLE.pairs) >= 5


def test_every_gpu_test_has_its_place_on_the_page() -> None:
    """No figure can be measured and not shown, and none shown that nothing measures."""
    written = "\n".join(path.read_text() for path in HERE.glob("test_*.py") if path.name != Path(__file__).name)
    tests = set(re.findall(r"^def (test_\w+)", written, re.MULTILINE))
    assert tests == {part.test.partition("[")[0] for part in PARTS}
    for part in PARTS:
        for key in part.figures:
            assert f'"{key}"' in written or key in {f"{name}_j" for name in ACCOUNTS}, key


ACCOUNTS = ("requests", "idle", "unattributed", "unmeasured")


def test_what_was_not_run_says_so() -> None:
    """Without a GPU every figure of every part reads `not run`, and no table has an empty cell where a figure goes."""
    text = page({}, None, None, NO_GPU)
    cells = [row.strip("| ").split(" | ")[-1] for row in text.splitlines() if row.startswith("| ")]
    figures = [cell for cell in cells if cell not in ("machine", "figure", "---", "")]
    assert set(figures) == {NOT_RUN, NO_GPU}
    assert figures.count(NO_GPU) == sum(len(part.figures) for part in PARTS)
    assert text.count(f"**{NO_GPU}**") == len(PARTS)


def test_what_was_run_is_shown(tmp_path: Path) -> None:
    """Figures come with four digits, a part that failed says why, and what it did not reach is `not run`."""
    step = {"batch": 1, "joules_per_step": 3.365, "ms_per_step": 7.0, "watts": 480.0, "context": None, "seconds": 5.0}
    outcomes = {
        PARTS[0].test: Outcome("failed: a|b", {"meter_j": 12345.678, "difference": 0.001234567, "imbalance_uj": 0}),
        PARTS[1].test: Outcome("passed", {"r2": 0.99991}, [step]),
    }
    write(tmp_path / "out" / "R.md", outcomes, {"name": "A GPU", "torch": None}, "today", NOT_RUN)
    text = (tmp_path / "out" / "R.md").read_text()
    for row in (
        "| GPU | A GPU |",
        "| torch | not known |",
        "| the proxy's meter, J | 12346 |",
        "| difference, relative | 0.001235 |",
        "| meter less accounts, µJ | 0 |",
        "| compared, s | not run |",
        "| R2, batches up to 64 | 0.9999 |",
        "| 1 | 3.365 | 7 | 480 | not known | 5 |",
    ):
        assert row in text, row
    assert "**failed: a|b**" in text
    assert '"r2":0.99991' in (tmp_path / "out" / "R.json").read_text()


def test_a_bar_in_a_cell_does_not_break_the_table() -> None:
    """Messages may hold anything."""
    assert table(("a", "b"), [("x|y", "z")]).splitlines()[-1] == "| x/y | z |"
    assert shown(None) == "not known"


def test_the_kept_page_has_every_figure() -> None:
    """RESULTS.md in the repository was written by the program as it is now."""
    text = (HERE / "RESULTS.md").read_text()
    for part in PARTS:
        assert f"## {part.title}\n" in text
        for words in part.figures.values():
            assert f"| {words} |" in text, words


def test_the_dummy_model_is_a_llama(tmp_path: Path) -> None:
    """8.03 and 1.24 G parameters, as published, and a word for each token."""
    parameters = {}
    for size in SHAPES:
        c = config(size)
        q, kv = c["num_attention_heads"] * c["head_dim"], c["num_key_value_heads"] * c["head_dim"]
        hidden = c["hidden_size"]
        layer = 2 * hidden * q + 2 * hidden * kv + 3 * hidden * c["intermediate_size"] + 2 * hidden
        tables = c["vocab_size"] * hidden * (1 if c["tie_word_embeddings"] else 2)
        parameters[size] = c["num_hidden_layers"] * layer + hidden + tables
    assert round(parameters["8b"] / 1e9, 2) == 8.03
    assert round(parameters["1b"] / 1e9, 2) == 1.24
    assert len(tokenizer()["model"]["vocab"]) == VOCABULARY
    names = {path.name for path in make(tmp_path / "model", "1b").iterdir()}
    assert names == {"config.json", "tokenizer.json", "tokenizer_config.json"}


def test_the_options_are_read() -> None:
    """Where the page goes and how long it may take."""
    given = arguments(["--out", "x/R.md", "--minutes", "9", "--size", "1b"])
    assert (given.out, given.minutes, given.size) == (Path("x/R.md"), 9.0, "1b")
    assert arguments([]).out == HERE / "RESULTS.md"


def test_without_a_gpu_it_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sentence, and no page: a page of nothing must not replace one of figures."""

    def refuse() -> None:
        raise MeterUnavailable("nvml: there is no driver")

    monkeypatch.setattr(nvml_driver.DRIVER, "acquire", refuse)
    assert main(["--out", str(tmp_path / "R.md")]) == 2
    assert "no NVIDIA GPU can be read: nvml: there is no driver" in capsys.readouterr().err
    assert not (tmp_path / "R.md").exists()
