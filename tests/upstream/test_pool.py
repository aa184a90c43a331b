"""
A request goes to the least busy engine that is up and has its model.
"""

import pytest

from proxy.errors import NoBackend
from proxy.upstream.pool import FAILURES_TO_EJECT, Pool


@pytest.fixture
def pool() -> Pool:
    made = Pool(["a", "b", "c"])
    made.checked("a", True, frozenset({"small"}))
    made.checked("b", True, frozenset({"small"}))
    made.checked("c", True, frozenset({"large", "small-lora"}))
    return made


def test_least_outstanding_of_those_that_serve(pool: Pool) -> None:
    """Order decides between equals; another model's engine is not asked, however idle."""
    assert pool.choose("small").name == "a"
    pool.members["a"].outstanding = 1
    assert pool.choose("small").name == "b"
    pool.members["b"].outstanding = 2
    assert pool.choose("small").name == "a"
    assert pool.choose("large").name == "c"


@pytest.mark.parametrize("model", ["nobody's", None])
def test_a_model_nobody_serves_goes_to_the_least_busy(pool: Pool, model: str | None) -> None:
    """Its own 404 is better than a guess, and an adapter may just have been loaded."""
    pool.members["a"].outstanding = 5
    assert pool.choose(model).name == "b"


def test_a_refused_connection_counts_at_once(pool: Pool) -> None:
    """Until a health check succeeds nothing more is sent there."""
    pool.refused("a")

    assert pool.choose("small").name == "b"
    assert pool.checked("a", True)
    assert pool.choose("small").name == "a"


def test_one_failed_check_is_forgiven(pool: Pool) -> None:
    """A backend is ejected after several in a row; one success forgets them."""
    changes = [pool.checked("a", healthy) for healthy in (False, True, *[False] * FAILURES_TO_EJECT, True)]

    assert changes == [False, False, *[False] * (FAILURES_TO_EJECT - 1), True, True]


def test_an_ejected_backend_keeps_its_models(pool: Pool) -> None:
    """When it returns it is known again without asking."""
    pool.refused("c")
    pool.checked("c", True)

    assert pool.members["c"].models == {"large", "small-lora"}


def test_those_already_tried_are_left_out(pool: Pool) -> None:
    """A second attempt goes elsewhere."""
    assert pool.choose("small", without=frozenset({"a"})).name == "b"


def test_nobody_is_up(pool: Pool) -> None:
    """The sentence names the backends and what to do."""
    for name in ("a", "b", "c"):
        pool.refused(name)

    with pytest.raises(NoBackend, match=r"No backend is up \(a, b, c\)\. Start vLLM"):
        pool.choose("nobody's")


def test_a_model_whose_backends_are_away_is_away() -> None:
    """503 and not another engine's 404, which would say that there is no such model."""
    pool = Pool(["a", "c"])
    pool.checked("a", True, frozenset({"small"}))
    pool.checked("c", True, frozenset({"large"}))
    pool.refused("a")

    with pytest.raises(NoBackend, match=r"No backend is up \(a\)"):
        pool.choose("small")
    assert pool.choose("large").name == "c"


def test_before_any_check_everybody_may_be_asked() -> None:
    """A proxy that starts with its engines must not refuse the first request."""
    assert Pool(["a"]).choose("any").name == "a"


def test_a_backend_that_is_out_has_no_fingerprint_any_more(pool: Pool) -> None:
    """What comes back under its address may be another engine; one failed check forgets nothing."""
    for name in ("a", "b"):
        pool.members[name].fingerprint.member = b"old"

    pool.refused("a")
    pool.checked("b", False)
    assert [pool.members[name].fingerprint.member for name in ("a", "b")] == [None, b"old"]

    pool.checked("b", False)
    assert pool.members["b"].fingerprint.member is None
