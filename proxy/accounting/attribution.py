"""Who pays for a window: the attribution rule, and the plain alternatives to compare it with.

    W_i = a*P + q*PC + d*D + c*C + F0*S            in predicted joules
    energy_i = E_active * W_i / sum_j W_j          j includes traffic that did not come through here

For a step whose energy is affine in what it holds this is the Shapley value: own marginal work plus an equal
share of the fixed part. E_active is the window's energy less idle power over the time nothing ran.
Every policy conserves: shares, idle and unattributed add up to the window's energy exactly.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import sub
from typing import Literal, NamedTuple, get_args

from proxy.accounting.activity import Activity, Work
from proxy.accounting.flight import Flight
from proxy.accounting.idle import BUSY
from proxy.accounting.samples import Window
from proxy.accounting.true_up import TrueUp
from proxy.accounting.uncertainty import Deviation, deviations, prompt_doubt
from proxy.accounting.units import Microjoules, from_watts
from proxy.accounting.weights import Weights

Policy = Literal["weighted", "tokens", "output-tokens", "time"]
STRANGERS = "strangers"
"""Who is charged for traffic that did not come through here, in the true-up's memory; no row is called so."""
POLICIES: tuple[Policy, ...] = get_args(Policy)


def apportion(total: int, weights: Sequence[float]) -> list[Microjoules]:
    """Split `total` in proportion to `weights`, in whole microjoules that add up to it exactly.

    Rounding the running sums instead of the parts makes the error telescope away; a zero weight gets zero.
    Weights must not be negative and must not all be zero.
    """
    reached = list(accumulate(weights))
    whole = reached[-1]
    if not whole > 0:
        raise ValueError("apportion needs a positive weight")
    cuts = [round(total * (part / whole)) for part in reached]
    return [*map(sub, cuts, [0, *cuts])]


class Share(NamedTuple):
    """One flight's part of one window: energy under the chosen policy, by phase, and under plain token share.

    deviation: what it would change if the prediction were wrong; None where nothing was predicted.
    """

    flight: Flight
    energy: int
    prefill: int
    decode: int
    shared: int
    token_share: int
    deviation: Deviation | None = None


@dataclass(frozen=True, slots=True)
class Split:
    """A window divided. The law holds by construction and is checked all the same.

    predicted_j: joules the weights predicted for what was active. activity: what ran; None where nobody knows.
    """

    window: Window
    shares: tuple[Share, ...]
    idle: Microjoules
    unattributed: Microjoules
    unmeasured: Microjoules
    predicted_j: float = 0.0
    activity: Activity | None = None

    @property
    def active(self) -> Microjoules:
        """The window without idle and unmeasured: what somebody's work cost."""
        return Microjoules(self.window.energy - self.idle - self.unmeasured)

    @property
    def requests(self) -> Microjoules:
        """Sum of the shares."""
        return Microjoules(sum(share.energy for share in self.shares))

    @property
    def imbalance(self) -> int:
        """Window minus accounts, in microjoules; anything but 0 is a bug."""
        return self.window.energy - self.requests - self.idle - self.unattributed - self.unmeasured


def predicted(work: Work, weights: Weights) -> tuple[float, float, float]:
    """Predicted joules of (prefill, decode, share of fixed step cost)."""
    prefill = weights.prefill * work.prefill + weights.attention * work.prefill_context
    decode = weights.decode * work.decode + weights.context * work.decode_context
    return prefill, decode, weights.step * work.steps + weights.experts * work.experts


def _weight(policy: Policy, work: Work) -> float:
    if policy == "tokens":
        return work.tokens
    return work.output_tokens if policy == "output-tokens" else work.present_ns


def unmeasured(window: Window) -> Split:
    """The whole window to `unmeasured`: bridged over a reset, or too long for its requests to be known."""
    nothing = Microjoules(0)
    return Split(window, (), nothing, nothing, window.energy)


def idle_energy(window: Window, covered_ns: int, idle_w: float | None) -> Microjoules:
    """Energy of the time nothing ran; without a known idle power that time's even part of the window.

    Of a window in which nothing ran it is all, unless somebody worked there whom neither relay nor engine told of.
    """
    length = window.end - window.start
    quiet = length - covered_ns
    if covered_ns == 0:
        idle = None if idle_w is None else from_watts(idle_w, type(window.start)(length))
        return window.energy if idle is None or window.energy <= BUSY * idle else idle
    if idle_w is None:
        return Microjoules(window.energy * quiet // length)
    return Microjoules(min(window.energy * quiet // length, from_watts(idle_w, type(window.start)(quiet))))


def split(
    window: Window,
    activity: Activity,
    *,
    weights: Weights,
    policy: Policy = "weighted",
    idle_w: float | None = None,
    true_up: TrueUp | None = None,
) -> Split:
    """Divide a window among those who were active in it.

    true_up: evens out the weighted policy's charges between windows; None divides each window for itself.
    Where nothing has weight although something was there, the energy is unattributed.
    """
    if window.bridged:
        return unmeasured(window)
    idle = idle_energy(window, activity.covered_ns, idle_w)
    active = Microjoules(window.energy - idle)
    works = activity.works + activity.strangers
    phases = [predicted(work, weights) for work in works]
    forecast = [prefill + decode + shared for prefill, decode, shared in phases]
    # A policy blind to what ran (output tokens in a prefill) must not lose energy: the next one that sees it decides.
    chosen = forecast
    if policy != "weighted":
        chosen = _first_that_sees([_weight(policy, work) for work in works], forecast)
    if sum(chosen) <= 0 or active == 0:
        return Split(window, (), idle, active, Microjoules(0), activity=activity)
    plain = apportion(active, _first_that_sees([work.tokens for work in works], forecast, chosen))
    if policy != "weighted":
        energies = apportion(active, chosen)
        spread: list[Deviation | None] = [None] * len(activity.flights)
    else:
        energies = _evened_out(window, activity, chosen, active, true_up)
        doubtful = None if activity.logged else [prompt_doubt(flight) for flight in activity.flights]
        spread = [*deviations(active, phases, len(activity.flights), doubtful, totals=forecast)]
    # `apportion` by phase without its lists: this is done for every request of every window
    shares = []
    for flight, deviation, energy, token_share, (first, second, _), whole in zip(
        activity.flights, spread, energies, plain, phases, forecast, strict=False
    ):
        if energy or token_share:
            prefill = round(energy * (first / whole)) if whole > 0 else 0
            both = round(energy * ((first + second) / whole)) if whole > 0 else 0
            shares.append(Share(flight, energy, prefill, both - prefill, energy - both, token_share, deviation))
    strangers = Microjoules(sum(energies[len(activity.flights) :]))
    return Split(window, tuple(shares), idle, strangers, Microjoules(0), sum(forecast), activity)


def _evened_out(
    window: Window, activity: Activity, chosen: list[float], active: Microjoules, true_up: TrueUp | None
) -> list[Microjoules]:
    if true_up is None:
        return apportion(active, chosen)
    rows = [flight.row for flight in activity.flights]
    staying = [flight.ended is None or flight.ended > window.end for flight in activity.flights]
    if len(activity.strangers) == 1:
        rows.append(STRANGERS)
    energies = apportion(active, true_up.claims(rows, chosen, active, window.end, staying=staying))
    true_up.all_charged(rows, chosen, energies, window.end)
    return energies


def _first_that_sees(*candidates: list[float]) -> list[float]:
    return next((weights for weights in candidates if sum(weights) > 0), candidates[-1])
