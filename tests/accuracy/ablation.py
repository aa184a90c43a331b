"""Where `weighted` loses accuracy: the same run again and again, one fact at a time given as it truly was.

Each line is a run of the real Group on the same readings; only what its flights are told differs. "true weights"
are the weights of the physics itself, where it is affine.
"""

from dataclasses import replace

from proxy.accounting.weights import Weights
from tests.accuracy.policies import Outcome, by_group, closed_form
from tests.accuracy.scenario import Scenario, Scene, play, tenant_bias_percent, wape_percent
from tests.accuracy.view import PLAIN, Told

FACTS: dict[str, Told] = {
    "as it stands": PLAIN,
    "cached tokens known with the first token": Told(cached_at_first=True),
    "queue time known with the first token": Told(queue_at_first=True),
    "queue time known at the end": Told(queue_at_end=True),
    "prompt length known at once": Told(prompt_at_once=True),
    "tokens arrive without lag": Told(lag_s=0.0),
    "tokens arrive with lag, without jitter": Told(jitter_s=0.0),
    "cached and queue": Told(cached_at_first=True, queue_at_first=True),
    "cached, queue, no lag": Told(cached_at_first=True, queue_at_first=True, lag_s=0.0),
    "the step log": Told(log=True),
    "the step log, but for 5 %": Told(log=True, lost=0.05),
    "the step log, but for 30 %": Told(log=True, lost=0.3),
}


def true_weights(scene: Scene) -> Weights:
    """What the physics itself charges per unit; exact where it is affine."""
    own = scene.physics
    return replace(scene.weights, prefill=own.a, attention=own.q, decode=own.d, context=own.c, step=own.fixed)


def ablate(scenario: Scenario) -> list[tuple[str, float, float]]:
    """(what was told, WAPE, tenant bias), in percent."""
    scene = play(scenario)
    best, exact = FACTS["cached, queue, no lag"], true_weights(scene)

    def grouped(weights: Weights, told: Told) -> Outcome:
        return by_group(scene.run, scene.readings, weights, "weighted", scenario.seed, told)[0]

    runs = {name: grouped(scene.weights, told) for name, told in FACTS.items()}
    runs["true weights"] = grouped(exact, PLAIN)
    runs["cached, queue, no lag, true weights"] = grouped(exact, best)
    runs["the step log, true weights"] = grouped(exact, Told(log=True))
    runs["closed form"] = closed_form(scene.run, scene.readings, scene.weights)
    runs["closed form, true weights"] = closed_form(scene.run, scene.readings, exact)
    return [
        (name, wape_percent(run.joules, scene.truth), tenant_bias_percent(scene, run.joules))
        for name, run in runs.items()
    ]
