"""When a sensor looks is found out, and what it saw goes to the steps that it saw."""

from collections.abc import Iterator
from itertools import pairwise
from random import Random

import pytest

from proxy.accounting.activity import Span, Work
from proxy.accounting.exposure import EARLY, GRID, LATEST, LEAST, LENGTHS, POINTS, ExposureFinder
from proxy.accounting.power_curve import PowerCurve
from proxy.accounting.samples import Move, Window
from proxy.accounting.step_work import add_step, whole_of
from proxy.accounting.step_worth import MOST, MOST_WAITING, Look, StepWorth
from proxy.accounting.steps import Computed, EngineStep
from proxy.accounting.units import Microjoules
from tests.accounting.flights import WEIGHTS, ms
from tests.accounting.scripted import step

PERIOD = 100.0
WHOLE = Span(ms(0), ms(10))


class World:
    """Steps of 5 to 60 ms that differ from their prediction by some percent, and a sensor that looks at them."""

    def __init__(self, seed: int, *, late: float, lasts: float, noise: float = 0.04, seconds: float = 40.0) -> None:
        random = Random(seed)
        self.steps: list[EngineStep] = []
        self.joules: list[float] = []
        self.true: list[float] = []
        at = 0.0
        while at < seconds * 1000:
            prompt = random.choice([0, 0, 0, 0, 500, 1500])
            held = [Computed("p", 100, prompt, 0)] if prompt else []
            held += [Computed(f"d{index}", 700, 0, 1) for index in range(random.randint(1, 20))]
            one = step(len(self.steps) + 1, at, at + random.uniform(5, 20) + prompt / 40, *held)
            self.steps.append(one)
            at = one.end / 1e6
            self.joules.append(PowerCurve([[(one, whole_of(one, WEIGHTS))]], WEIGHTS).joules_until(one.end))
            self.true.append(self.joules[-1] * random.gauss(1, noise))
        self.curve = PowerCurve([[(one, whole_of(one, WEIGHTS)) for one in self.steps]], WEIGHTS)
        self.moves = list(self._moves(late, lasts, seconds, random))

    def seen(self, start: float, end: float) -> float:
        """True joules between two milliseconds."""
        return sum(
            joules * max(0.0, min(end, one.end / 1e6) - max(start, one.start / 1e6)) / ((one.end - one.start) / 1e6)
            for one, joules in zip(self.steps, self.true, strict=True)
        )

    def _moves(self, late: float, lasts: float, seconds: float, random: Random) -> Iterator[Move]:
        for number in range(3, int(seconds * 10) - 3):
            edge = number * PERIOD + 17.0
            energy = self.seen(edge - late - lasts, edge - late) * PERIOD / lasts
            after = edge - 25 + random.uniform(-4, 4)
            yield Move(ms(after), ms(after + 50), Microjoules(round(energy * 1e6)))


@pytest.mark.parametrize(("late", "lasts"), [(20.0, 25.0), (0.0, 25.0), (45.0, 50.0), (10.0, 100.0)])
def test_when_a_sensor_looks_is_found(late: float, lasts: float) -> None:
    """Its length exactly, its place within one part of the grid; its forecasts miss by what steps differ by."""
    world, worth = World(1, late=late, lasts=lasts), StepWorth()
    worth.looked(world.moves, world.curve)
    found, clock = worth.finder.exposure, worth._clock

    assert found is not None
    assert found.length == round(lasts / PERIOD * GRID)
    shift = ((clock._middle + clock._off) / 1e6 - 17.0 + PERIOD / 2) % PERIOD - PERIOD / 2
    assert found.late * PERIOD / GRID - shift == pytest.approx(late, abs=1.2 * PERIOD / GRID)
    assert worth.finder.noise < 0.06


def test_steps_that_were_looked_at_count_what_they_took() -> None:
    """Once the look is known: a reading tells what the few steps in it took together."""
    world, worth = World(2, late=20.0, lasts=50.0, noise=0.08), StepWorth()
    worth.looked(world.moves[:200], world.curve)
    worth.looked(world.moves[200:], world.curve)
    level = worth.finder.level
    errors = {True: [0.0, 0.0], False: [0.0, 0.0]}
    for one, predicted, true in zip(world.steps, world.joules, world.true, strict=True):
        factor = worth.factors.get((one.engine, one.boot, one.number))
        known = errors[factor is not None]
        known[0] += abs(predicted * level * (factor or 1.0) - true)
        known[1] += abs(predicted * level - true)

    assert errors[True][0] < 0.9 * errors[True][1]
    assert errors[False][0] == errors[False][1] > 0


def test_a_look_tells_the_work_it_stands_for() -> None:
    """Its predicted joules at the level of late are the reading, but for what the steps differ by."""
    world, worth = World(3, late=20.0, lasts=25.0), StepWorth()
    worth.looked(world.moves[:200], world.curve)
    looks = worth.looked(world.moves[200:], world.curve)

    def joules(look: Look) -> float:
        return sum(
            getattr(WEIGHTS, weight) * getattr(look.work, part)
            for weight, part in (
                ("prefill", "prefill"),
                ("attention", "prefill_context"),
                ("decode", "decode"),
                ("context", "decode_context"),
                ("step", "steps"),
            )
        )

    off = [look.energy_uj / 1e6 / joules(look) - 1 for look in looks]
    assert len(looks) > 150
    assert abs(sum(off) / len(off)) < 0.02
    assert (sum(one * one for one in off) / len(off)) ** 0.5 == pytest.approx(looks[-1].noise, rel=0.3)


def test_no_step_is_believed_to_be_far_from_its_prediction() -> None:
    """A reading ten times too high moves nobody by more than the limit."""
    world, worth = World(4, late=20.0, lasts=25.0), StepWorth()
    worth.looked(world.moves[:200], world.curve)
    move = world.moves[200]

    worth.looked([move._replace(energy=Microjoules(10 * move.energy))], world.curve)

    assert worth.factors
    assert {1 + MOST} == set(worth.factors.values())


def test_a_sensor_that_says_nothing_of_the_steps_changes_nobody() -> None:
    """Readings of pure chance: no look is believed."""
    world, worth, random = World(5, late=0.0, lasts=100.0), StepWorth(), Random(5)
    moves = [move._replace(energy=Microjoules(random.randint(1, 10**8))) for move in world.moves]

    assert [] == worth.looked(moves, world.curve)
    assert (None, {}) == (worth.finder.exposure, worth.factors)


def test_a_pause_of_the_engine_is_not_looked_at() -> None:
    """What the sensor saw of idle time is no step's."""
    world, worth = World(6, late=20.0, lasts=25.0), StepWorth()
    worth.looked(world.moves[:200], world.curve)
    gap = [one for one in world.steps if not 25_000 < one.start / 1e6 < 26_000]
    curve = PowerCurve([[(one, whole_of(one, WEIGHTS)) for one in gap]], WEIGHTS)

    looks = worth.looked([move for move in world.moves[200:] if 25_100 < move.at / 1e6 < 25_900], curve)

    assert [] == looks


def test_nothing_is_believed_after_few_readings() -> None:
    """However well one guess does."""
    finder = ExposureFinder()
    until = [float(100 - place) for place in POINTS]
    for _ in range(LEAST - 1):
        finder.learn(20.0, 20.0, until)
        assert finder.exposure is None
    assert len(until) == EARLY + LATEST + max(LENGTHS) + 1


def test_the_whole_of_a_step_is_the_sum_of_its_sequences() -> None:
    """Of all that energy is predicted from."""
    one = step(1, 0, 10, Computed("p", 1000, 50, 0), Computed("d", 500, 0, 1), Computed("s", 100, 0, 4))
    found: dict[str, Work] = {}
    add_step(found, one, WHOLE, WEIGHTS)
    sums, whole = Work(), whole_of(one, WEIGHTS)
    for work in found.values():
        sums.add(work)

    for name in ("prefill", "prefill_context", "decode", "decode_context", "steps"):
        assert getattr(sums, name) == pytest.approx(getattr(whole, name))


def test_what_a_step_was_worth_scales_its_energy_and_not_its_tokens() -> None:
    """Tokens and time are counted as they are, so that plain token share stays what people expect."""
    one = step(1, 0, 10, Computed("p", 1000, 50, 0), Computed("d", 500, 0, 1))
    plain: dict[str, Work] = {}
    dear: dict[str, Work] = {}
    add_step(plain, one, WHOLE, WEIGHTS)
    add_step(dear, one, WHOLE, WEIGHTS, 1.2)

    for name in ("p", "d"):
        for part in ("prefill", "prefill_context", "decode", "decode_context", "steps"):
            assert getattr(dear[name], part) == pytest.approx(1.2 * getattr(plain[name], part))
        for part in ("tokens", "output_tokens", "present_ns"):
            assert getattr(dear[name], part) == getattr(plain[name], part)


def test_a_window_is_of_the_time_that_its_sensor_looked_at() -> None:
    """A counter that shows what it saw 70 ms late: windows are as long as before, and follow one another."""
    world, worth = World(7, late=70.0, lasts=25.0), StepWorth()
    times = []
    for last, move in pairwise(world.moves):
        window = Window("m", last.at, move.at, move.energy, moves=(move,))
        worth.looked(window.moves, world.curve)
        times.append((window, worth.time_of(window)))

    before, after = times[5], times[-1]
    assert (before[0].start, before[0].end) == (before[1].start, before[1].end)
    # the poll that saw the move came 25 ms after it, more or less
    assert (after[0].end - after[1].end) / 1e6 == pytest.approx(95, abs=10)
    assert all(one.end == following.start for (_, one), (_, following) in pairwise(times))


def test_after_a_gap_no_time_is_made_up() -> None:
    """A window that does not follow the last one begins where it says, less what the counter is late."""
    worth = StepWorth()
    first, later = (Window("m", ms(at), ms(at + 100), Microjoules(1)) for at in (0, 5_000))

    assert Span(first.start, first.end) == worth.time_of(first)
    assert Span(later.start, later.end) == worth.time_of(later)


def test_a_move_waits_until_all_is_known_that_it_may_be_of() -> None:
    """In order, with those that came since; where nothing is to be waited for none does."""
    worth = StepWorth()
    early, late, last = (Move(ms(at - 50), ms(at), Microjoules(1)) for at in (100, 200, 300))

    assert [] == worth.ripe([early, late], ms(100))
    assert [early] == worth.ripe([], ms(150))
    assert [late, last] == worth.ripe([last], None)
    assert [] == worth.ripe([], None)


def test_moves_that_nobody_ever_knows_of_are_dropped() -> None:
    """The oldest first."""
    worth = StepWorth()
    moves = [Move(ms(at - 50), ms(at), Microjoules(1)) for at in range(100, 100 * (2 * MOST_WAITING), 100)]
    worth.ripe(moves, ms(0))

    assert worth.ripe([], None) == moves[-MOST_WAITING:]


def test_where_the_ends_of_steps_are_uncertain_a_look_is_noisier_at_such_that_differ() -> None:
    """By what the power changes there; not amid steps that are alike, and not with the engine's own times."""
    world, worth = World(7, late=20.0, lasts=25.0), StepWorth()
    worth.looked(world.moves[:200], world.curve)
    known = {look.energy_uj: look.noise for look in worth.looked(world.moves[200:300], world.curve)}

    worth = StepWorth()
    worth.looked(world.moves[:200], world.curve)
    blurred = PowerCurve([[(one, whole_of(one, WEIGHTS)) for one in world.steps]], WEIGHTS, blur=ms(3))
    looks = worth.looked(world.moves[200:300], blurred)
    more = [look.noise - known[look.energy_uj] for look in looks]

    assert min(more) >= 0
    assert max(more) > 0.05
    assert min(more) < 0.005
