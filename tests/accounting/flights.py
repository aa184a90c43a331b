"""Builds flights and windows for tests, in milliseconds and joules, so that a test reads like its sentence."""

from collections.abc import Sequence

from proxy.accounting.activity import Span
from proxy.accounting.attribution import Policy, Split, split
from proxy.accounting.flight import Flight, Outcome
from proxy.accounting.reconstruction import reconstruct
from proxy.accounting.samples import Window
from proxy.accounting.units import Microjoules, Nanoseconds
from proxy.accounting.unseen import UnseenTraffic
from proxy.accounting.weights import LLAMA_8B, Weights, roofline_prior

WEIGHTS = roofline_prior(LLAMA_8B)


def ms(value: float) -> Nanoseconds:
    """Milliseconds as nanoseconds."""
    return Nanoseconds(round(value * 1e6))


def window(start_ms: float, end_ms: float, joules: float = 10.0, *, bridged: bool = False) -> Window:
    """A window of one meter."""
    return Window("meter", ms(start_ms), ms(end_ms), Microjoules(round(joules * 1e6)), bridged)


def stream(
    row: str,
    *,
    sent: float = 0,
    first: float = 50,
    step: float = 10,
    tokens: int = 20,
    prompt: int = 100,
    cached: int = 0,
    sequences: int = 1,
    prompts: int = 1,
    over: bool = True,
    outcome: Outcome = "ok",
) -> Flight:
    """A stream that gives one token per sequence and step."""
    flight = Flight(row, row, ms(sent), sequences, prompts, prompt_tokens=prompt, cached_tokens=cached)
    for number in range(tokens):
        flight.tick(ms(first + number * step), (number + 1) * sequences)
    if over:
        flight.end(ms(first + (tokens - 1) * step), outcome)
    return flight


def silent(row: str, *, sent: float = 0, ended: float | None = 200, prompt: int = 100, tokens: int = 20) -> Flight:
    """A request answered in one piece."""
    flight = Flight(row, row, ms(sent), silent=True, prompt_tokens=prompt, cached_tokens=0)
    if ended is not None:
        flight.completion_tokens = tokens
        flight.end(ms(ended), "ok")
    return flight


def divided(
    window: Window,
    flights: Sequence[Flight],
    *,
    weights: Weights = WEIGHTS,
    policy: Policy = "weighted",
    idle_w: float | None = None,
    unseen: Sequence[UnseenTraffic] = (),
) -> Split:
    """A window divided on what token times tell."""
    activity = reconstruct(Span(window.start, window.end), flights, weights=weights, unseen=unseen)
    return split(window, activity, weights=weights, policy=policy, idle_w=idle_w)
