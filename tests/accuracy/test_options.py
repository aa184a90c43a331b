"""The bench's options: help that prints, cells as asked for, and one sentence for what makes no sense."""

from dataclasses import replace

import pytest

from tests.accuracy.__main__ import main, parsed
from tests.accuracy.options import chosen
from tests.accuracy.physics import made
from tests.accuracy.scenario import Scenario, play


def cells(line: str) -> list[Scenario] | None:
    return chosen(parsed(line.split()))


@pytest.mark.unit
def test_help_names_every_option(capsys) -> None:
    """
    A percent sign in a help text would end it in a traceback.
    """
    with pytest.raises(SystemExit) as ended:
        parsed(["--help"])

    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "70 % hold" in " ".join(said.split())
    for option in ("--quick", "--mix", "--lost-steps", "--max-seqs"):
        assert option in said


@pytest.mark.unit
@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("--concurrency 0", "'0' is not a number above 0"),
        ("--concurrency 4,-1", "'-1' is not a number above 0"),
        ("--concurrency nan", "'nan' is not a number above 0"),
        ("--concurrency four", "'four' is not a number above 0"),
        ("--concurrency 4,", "'' is not a number above 0"),
        ("--shorter 0", "'0' is not a number from 0.01 to 100"),
        ("--learning-s=-1", "'-1' is not a number from 0"),
        ("--unseen 1", "'1' is not a part from 0 to below 1"),
        ("--silent 1.5", "'1.5' is not a part from 0 to 1"),
        ("--lag=-0.1", "'-0.1' is not a number from 0"),
        ("--period 0", "'0' is not a number above 0"),
        ("--looks never", "'never' is not a number above 0"),
        ("--noise 2", "'2' is not a part from 0 to 1"),
        ("--aborted=-0.1", "'-0.1' is not a part from 0 to 1"),
        ("--lost-steps much", "'much' is not a part from 0 to 1"),
        ("--mix chat=0", "'0' is not a number above 0"),
        ("--mix chat=", "'' is not a number above 0"),
        ("--mix chess=1", "'chess' is none of chat, "),
        ("--mix chat=1 --workload code", "not allowed with argument"),
        ("--workload mixed,chess", "'chess' is none of mixed, "),
        ("--draft=-1", "'-1' is not a whole number from 0"),
        ("--blocks 0", "'0' is not a whole number from 1"),
        ("--max-seqs 2.5", "'2.5' is not a whole number from 1"),
        ("--jobs 0", "'0' is not a whole number from 1"),
        ("--seed x", "'x' is not a whole number from 0"),
        ("--seeds 1,2.5", "'2.5' is not a whole number from 0"),
        ("--json /nowhere/at/all.json", "is not a file in a folder that exists"),
        ("--ablate --json rows.json", "--ablate has no rows for --json"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_sentence(line: str, why: str, capsys) -> None:
    """
    The last line says which option and why; status 2, no traceback.
    """
    with pytest.raises(SystemExit) as ended:
        parsed(line.split())

    assert ended.value.code == 2
    assert why in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("--blocks 10 --concurrency 2", "does not fit into the memory"),
        ("--unseen 0.99 --concurrency 0.1", "no request came through the proxy"),
    ],
)
def test_what_cannot_be_played_is_said_in_one_sentence(line: str, why: str, capsys) -> None:
    """
    What only the run shows to be impossible.
    """
    assert main(f"{line} --shorter 50 --learning-s 0".split()) == 2
    assert why in capsys.readouterr().err


@pytest.mark.unit
def test_quick_shortens_cells_of_ones_own() -> None:
    """
    A quarter of the length and a minute to learn; what is said of either counts.
    """
    assert cells("--quick") is None
    assert cells("--quick --concurrency 4") == [Scenario(shorter=4.0, learning_s=60.0)]
    assert cells("--quick --concurrency 4 --shorter 2 --learning-s 10") == [Scenario(shorter=8.0, learning_s=10.0)]


@pytest.mark.unit
def test_every_knob_of_the_sensor_reaches_the_board() -> None:
    """
    And the labels say what is unusual, so that no two cells of a table look alike.
    """
    asked = cells("--concurrency 4 --sensor part-time,slow --lag 0.3 --period 0.2 --looks 0.05 --noise 0.1")

    assert asked is not None
    boards = [cell.sensor for cell in asked]
    assert ["part-time", "slow"] == [board.name for board in boards]
    assert {(0.3, 0.2, 0.05)} == {(board.lag_s, board.period_s, board.looks_s) for board in boards}
    assert ["part-time-lag-0.3-period-0.2-looks-0.05"] == [cell.sensor_label for cell in asked[:1]]
    assert {"mixed-noise-10"} == {cell.label for cell in asked}


@pytest.mark.parametrize("knob", [{"lag": 0.3}, {"period": 0.2}, {"looks": 0.05}])
def test_a_knob_of_the_sensor_changes_the_readings_and_nothing_else(knob: dict[str, float]) -> None:
    """
    The same requests in the same steps, so that two sensors can be compared.
    """
    usual = Scenario(concurrency=2, shorter=20)
    plain, changed = play(usual), play(replace(usual, **knob))

    assert [(step.start, step.joules) for step in plain.run.steps] == [
        (step.start, step.joules) for step in changed.run.steps
    ]
    assert plain.readings != changed.readings


def test_noise_changes_the_steps_but_not_who_asks_for_what() -> None:
    """
    Without noise a step's energy is the physics' own.
    """
    usual = Scenario(concurrency=2, shorter=20)
    plain, quiet = play(usual), play(replace(usual, noise=0.0))

    assert {(job.row, job.prompt) for job in plain.run.jobs} == {(job.row, job.prompt) for job in quiet.run.jobs}
    physics, step = made(usual.physics, usual.seed), quiet.run.steps[0]
    assert step.joules == pytest.approx(physics.joules(step.loads))
    assert plain.run.steps[0].joules != step.joules
