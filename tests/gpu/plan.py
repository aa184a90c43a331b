"""How long each part of a GPU run takes: the whole run, and a short one for a machine lent for ten minutes."""

from dataclasses import dataclass

MINUTES = "JOULEPROXY_GPU_MINUTES"
WHOLE_FROM_MIN = 25.0
"""Minutes from which on there is time for the whole run."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Durations in seconds. rounds: of all batch sizes. pairs: of stretches without and with what is added.

    window_s: one measured stretch. settle_s: what passes before a stretch when the load has changed.
    """

    mixed_s: float
    warm_s: float
    rounds: int
    window_s: float
    settle_s: float
    pairs: int

    def needs_s(self, test: str) -> float:
        """About what a test takes, engine start not counted; 0 for one that is not known here."""
        alternation_s = self.pairs * 2 * self.window_s + (self.pairs + 1) * self.settle_s + 15
        return {
            "test_every_joule_is_in_an_account": self.mixed_s + 25,
            "test_a_step_is_a_straight_line_in_its_batch": self.rounds * 8 * (1.3 * self.window_s + 2.5) + 10,
            "test_an_added_request_costs_what_it_pays": alternation_s,
            "test_the_relay_alone_comes_near_to_the_step_log": 30.0,
            "test_the_step_log_costs_nothing": 120 + 2 * alternation_s,
        }.get(test.partition("[")[0], 0.0)


WHOLE = Plan(mixed_s=300, warm_s=45, rounds=3, window_s=10, settle_s=8, pairs=6)
SHORT = Plan(mixed_s=60, warm_s=20, rounds=2, window_s=5, settle_s=4, pairs=5)


def plan(minutes: float) -> Plan:
    """The plan that fits; parts for which the time does not last are left out by name, not cut."""
    return WHOLE if minutes >= WHOLE_FROM_MIN else SHORT
