"""How far a request's figure may be off, against the other requests of its meter and in absolute terms.

The relative part is a standard deviation made of what can be wrong about a share of a window:

    weights   a phase (prefill, decode, shared) costs more against the others than was predicted. What one window
              gives too much another may give too little: kept signed, per unit of the logarithm of the phase's weight
    unseen    traffic that nobody here saw was more or less than counted; all requests move together, signed too
    guesses   prompt and cached tokens were guessed while the window was divided; what the engine tells at the end
              says by how much, in sign and size, but a divided window stays divided
    window    a part-time sensor, and without a step log the place of the work in time; independent between windows
    edges     where in its first and last window the request's energy fell: (rho * e)^2 / 12 for each end

The absolute part is the meter's gain: common to all figures of that meter, and no average makes it smaller.
Source of the terms: research on energy attribution (ensemble of weights, part-time sensing, edges). Their sizes were
set in simulation, grades A and B only, against per-step Shapley values: there two standard deviations hold 19 of 20
requests and more, short or long, also with physics that the rule does not assume and with unseen traffic. No GPU and no
external meter has confirmed them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import hypot, log, sqrt

from proxy.accounting.flight import Flight

Deviation = tuple[float, float, float, float, float]
"""Of one share, in microjoules: (prefill, shared, unseen, guess, others).

prefill, shared: signed change of the share if that phase's weight were e-fold; decode is minus their sum, because
scaling all phases alike changes nothing. unseen: signed change if the weight of unseen traffic were e-fold.
guess: standard deviation from its own guessed prompt work; others: from that of the other requests.
"""

PRIOR_WEIGHTS, FITTED_WEIGHTS = 0.2, 0.065
"""Standard deviation of the logarithm of one phase's predicted joules against the others'."""
PART_TIME_SENSOR = 0.1
"""Of one window's reading, where nothing better is known: a sensor that looks 25 of 100 ms at steps of 7 to 40 ms."""
PLACEMENT = {"A": 0.0, "B": 0.07, "C": 0.1, "D": 0.25}
"""Of a request's share of one window, by grade: token times say less well than a step log what ran when.

C and D are assumptions.
"""
UNSEEN = 0.3
"""Of the work of traffic known only from the engine's counters: its contexts and times are guesses."""
EDGES = 0.2
"""Part of an end window's energy that the prediction does not explain (rho)."""
GUESSED_PROMPT = 0.2
"""Of prefill work while prompt or cached tokens are a guess."""
PREDICTED = 0.3
"""Of what a provisional figure adds to the divided windows."""
FADE = 0.995
"""What a window leaves of the learnt noise: about the last two hundred count."""
FEWEST_WINDOWS = 20

ABSOLUTE: dict[str, float] = {"nvml": 0.05, "nvml integral": 0.06, "rapl": 0.05, "modelled": 0.5}
"""By kind of meter; a recording's is unknown.

nvml: gain and offset of data-centre boards, about 5 % and different between identical boards (Yang, Adamek, Armour,
"Part-time Power Measurements", SC24, arXiv 2312.02741); NVIDIA's manual says +-5 % of power readings too. The counter
is not proven to be another sensor. nvml integral: 1 % more, the most by which counter and polled integral differ
(zeus issue 12). rapl: package domains of Intel since Haswell are measured and follow wall power linearly (Khan et al.,
"RAPL in Action", 2018), nothing is known of the single machine, and AMD models them: taken as a board's. modelled: no
sensor, assumed watts; half of the figure is a guess too.
"""


@dataclass(frozen=True, slots=True)
class Doubts:
    """How far what goes into a split may be off, as relative standard deviations; see the module's head."""

    weights: float
    window: float
    unseen: float = UNSEEN
    edges: float = EDGES


def doubts(grade: str, *, trust: float = 0.0, sensor_noise: float | None = None) -> Doubts:
    """The doubts about a group's figures.

    trust: 0 for prior weights to 1 for weights that were fitted and held out on other windows. sensor_noise: relative
    noise of one window's reading; None where it has not been learnt. A grade that is no letter A to D counts as D.
    """
    sensor = PART_TIME_SENSOR if sensor_noise is None else sensor_noise
    weights = PRIOR_WEIGHTS ** (1 - trust) * FITTED_WEIGHTS**trust
    return Doubts(weights=weights, window=hypot(sensor, PLACEMENT.get(grade, PLACEMENT["D"])))


PRIOR = doubts("B")
"""Token times, prior weights, a sensor nobody knows."""


def prompt_doubt(flight: Flight) -> float:
    """Relative doubt about a request's prefill work: none once the engine has told its prompt and all of its hits."""
    return 0.0 if flight.prompt_tokens is not None and flight.hits_told is not None else GUESSED_PROMPT


def deviations(
    active_uj: int,
    phases: Sequence[tuple[float, float, float]],
    seen: int,
    guessed: Sequence[float] | None = None,
    *,
    totals: Sequence[float] | None = None,
) -> list[Deviation]:
    """What each of the first `seen` shares of a window would change if the prediction were wrong.

    phases: predicted joules (prefill, decode, shared) of everything that ran, unseen traffic last; totals: their sums.
    guessed: relative standard deviation of each seen request's prefill work; None: nothing was guessed. O(n).
    """
    if totals is None:
        totals = [sum(parts) for parts in phases]
    whole = sum(totals)
    if whole <= 0:
        return [(0.0, 0.0, 0.0, 0.0, 0.0)] * seen
    prefill = sum([parts[0] for parts in phases]) / whole
    shared = sum([parts[2] for parts in phases]) / whole
    strangers = sum(totals[seen:]) / whole
    each = active_uj / whole
    if guessed is None or not any(guessed):
        return [
            ((p - total * prefill) * each, (s - total * shared) * each, -total * strangers * each, 0.0, 0.0)
            for (p, _, s), total in zip(phases[:seen], totals, strict=False)
        ]
    wrong = [doubt * parts[0] for doubt, parts in zip(guessed, phases, strict=False)]
    all_wrong = sum(joules * joules for joules in wrong)
    return [
        (
            (p - total * prefill) * each,
            (s - total * shared) * each,
            -total * strangers * each,
            own * (1 - total / whole) * each,
            total / whole * sqrt(max(0.0, all_wrong - own * own)) * each,
        )
        for (p, _, s), total, own in zip(phases[:seen], totals, wrong, strict=False)
    ]


@dataclass(slots=True)
class Spread:
    """The doubts about one request, added up window by window; microjoules, the variances in their square.

    prefill, shared, unseen: signed, one standard deviation of the weight in question. guess: own guessed prompt work,
    per_token: the same over the prompt tokens that were guessed to be computed. edges: of the first and last window.
    """

    prefill: float = 0.0
    shared: float = 0.0
    unseen: float = 0.0
    guess: float = 0.0
    per_token: float = 0.0
    windows_uj2: float = 0.0
    first_uj2: float | None = None
    last_uj2: float = 0.0

    def add(self, energy_uj: int, deviation: Deviation | None, doubts: Doubts, guessed_tokens: int) -> None:
        """Takes in the share of one window.

        deviation: None where the policy weighs nothing that could be wrong. guessed_tokens: prompt tokens that the
        window's division took the engine to compute.
        """
        squared = float(energy_uj) * energy_uj
        self.windows_uj2 += doubts.window * doubts.window * squared
        self.last_uj2 = doubts.edges * doubts.edges * squared / 12
        if self.first_uj2 is None:
            self.first_uj2 = self.last_uj2
        if deviation is None:
            return
        prefill, shared, unseen, guess, others = deviation
        self.prefill += doubts.weights * prefill
        self.shared += doubts.weights * shared
        self.unseen += doubts.unseen * unseen
        self.windows_uj2 += others * others
        if guess:
            self.guess += guess
            self.per_token += guess / max(1, guessed_tokens)

    def guess_error(self, told_tokens: int | None) -> float:
        """Signed error of the prompt work once the engine has told it in microjoules, else a standard deviation."""
        if told_tokens is None:
            return self.guess
        return (self.guess - self.per_token * told_tokens) / GUESSED_PROMPT

    @property
    def noise_uj2(self) -> float:
        """Variance of what errs independently from request to request."""
        return self.windows_uj2 + (self.first_uj2 or 0.0) + self.last_uj2


def standard_deviation(prefill: float, shared: float, unseen: float, guess: float, noise_squared: float) -> float:
    """Of a request's energy or of a sum of requests', in the unit of the signed parts.

    The signed parts of a sum are the sums of the parts, so that what one request has too much and another too little
    cancels, and what all have alike does not; noise adds in quadrature. decode is minus prefill and shared.
    """
    decode = prefill + shared
    signed = prefill * prefill + shared * shared + decode * decode + unseen * unseen + guess * guess
    return sqrt(signed + noise_squared)


class WindowNoise:
    """s_u: relative noise of one window's reading, from what the prediction leaves unexplained; fading.

    An upper bound, because what the prediction gets wrong is in it too.
    """

    def __init__(self) -> None:
        self._seen = 0
        self._squares = self._weight = 0.0

    def learn(self, measured_uj: int, predicted_j: float, kappa: float | None) -> None:
        """Takes in a divided window: its active energy and what it was predicted to be before scaling by kappa."""
        if measured_uj <= 0 or predicted_j <= 0 or not kappa:
            return
        off = log(measured_uj / 1e6 / (kappa * predicted_j))
        # A nearly quiet window says nothing of a busy one's noise: what counts is where the energy is.
        self._squares = FADE * self._squares + measured_uj * off * off
        self._weight = FADE * self._weight + measured_uj
        self._seen += 1

    @property
    def relative(self) -> float | None:
        """None before enough windows were seen."""
        return sqrt(self._squares / self._weight) if self._seen >= FEWEST_WINDOWS else None


def absolute_uncertainty(kind: str, *, integrated: bool = False) -> float | None:
    """Relative standard deviation that is common to all figures of a meter; None for one that nobody knows.

    integrated: the meter adds up power readings because the board has no energy counter.
    """
    return ABSOLUTE.get(f"{kind} integral" if integrated else kind)


def widest(parts: Iterable[float | None]) -> float | None:
    """Of figures measured by several meters: that of the worst; None when one is unknown or there is none."""
    found = tuple(parts)
    known = [part for part in found if part is not None]
    return max(known) if known and len(known) == len(found) else None
