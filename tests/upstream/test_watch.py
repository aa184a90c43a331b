"""
Engines are looked at again and again: who is up, what they serve, what they have counted.
"""

import asyncio
import json
from collections.abc import Callable

import pytest

from proxy.accounting.units import Nanoseconds
from proxy.accounting.unseen import EngineCounters
from proxy.errors import BackendFailed, Refused
from proxy.upstream.pool import FAILURES_TO_EJECT, Pool
from proxy.upstream.watch import MODELS_EVERY, Watch
from tests.upstream.test_engine_metrics import PAGE

Page = bytes | Exception | None


class ScriptedEngine:
    """Gives a page for a path, or fails; keeps what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.pages: dict[str, Page] = {
            "/health": b"",
            "/v1/models": models("m", root="/models/m"),
            "/metrics": PAGE,
        }

    async def page(self, path: str, *, timeout_s: float = 5.0) -> bytes | None:
        self.asked.append(path)
        found = self.pages[path]
        if isinstance(found, Exception):
            raise found
        return found


def models(*names: str, root: str | None = None) -> bytes:
    return json.dumps({"data": [{"id": name, "root": root} for name in names]}).encode()


class Look:
    """A watch over one engine, with all it says."""

    def __init__(self) -> None:
        self.engine = ScriptedEngine()
        self.pool = Pool(["b"])
        self.counters: list[tuple[str, EngineCounters | None, Nanoseconds]] = []
        self.roots: list[tuple[str, str]] = []
        self._now = 0
        self.watch = Watch(
            {"b": self.engine},  # type: ignore[dict-item]
            self.pool,
            clock=self._clock,
            on_counters=lambda *told: self.counters.append(told),
            on_root=lambda *told: self.roots.append(told),
        )

    def _clock(self) -> Nanoseconds:
        self._now += 10
        return Nanoseconds(self._now)

    def check(self, times: int = 1) -> None:
        for _ in range(times):
            asyncio.run(self.watch.check("b"))

    def scrape(self) -> EngineCounters | None:
        asyncio.run(self.watch.scrape("b"))
        return self.counters[-1][1]

    @property
    def member(self) -> tuple[bool, frozenset[str] | None]:
        return self.pool.members["b"].up, self.pool.members["b"].models


@pytest.fixture
def look() -> Look:
    return Look()


def test_a_healthy_engine_tells_its_models(look: Look) -> None:
    """And where it loaded the first of them from."""
    look.check()

    assert look.member == (True, frozenset({"m"}))
    assert look.roots == [("b", "/models/m")]


def test_models_are_asked_for_now_and_then(look: Look) -> None:
    """Adapters loaded later are found, without a question at every check."""
    look.check()
    look.engine.pages["/v1/models"] = models("m", "lora")
    look.check(MODELS_EVERY - 1)
    assert look.member[1] == {"m"}

    look.check()

    assert look.member[1] == {"m", "lora"}
    assert look.engine.asked.count("/v1/models") == 2


@pytest.mark.parametrize("failure", [None, Refused("x"), BackendFailed("x")])
def test_a_sick_engine_is_ejected_and_returns(look: Look, failure: Page, caplog: pytest.LogCaptureFixture) -> None:
    """Each change is logged once, and its models are asked for again: it may have been restarted with others."""
    look.check()
    look.engine.pages["/health"] = failure
    look.check(FAILURES_TO_EJECT + 3)
    assert look.member[0] is False

    look.engine.pages |= {"/health": b"", "/v1/models": models("other")}
    look.check()

    assert look.member == (True, frozenset({"other"}))
    assert [r.message for r in caplog.records] == ["backend b is down", "backend b is up again"]


@pytest.mark.parametrize("page", [None, b"", b"{", b"[]", b'{"data":[{}]}', b'{"data":[1]}', b'{"data":null}'])
def test_an_unreadable_list_of_models(look: Look, page: Page) -> None:
    """The engine is up all the same, and what was known stays known."""
    look.check()
    look.engine.pages["/v1/models"] = page

    look.check(MODELS_EVERY)

    assert look.member == (True, frozenset({"m"}))


def test_an_engine_without_a_root(look: Look) -> None:
    """Nothing is guessed of its shape."""
    look.engine.pages["/v1/models"] = models("m")

    look.check()

    assert look.roots == []


def test_counters_have_the_middle_of_their_question(look: Look) -> None:
    """The time they stand for is halfway between asking and having."""
    found = look.scrape()

    assert found is not None
    assert (found.at, found.running) == (15, 3.0)


@pytest.mark.parametrize("page", [None, b"<html>", Refused("x"), BackendFailed("x")])
def test_counters_that_cannot_be_had_are_none(look: Look, page: Page) -> None:
    """And the attempt is told too, so that nobody waits for it."""
    look.engine.pages["/metrics"] = page

    assert look.scrape() is None
    assert len(look.counters) == 1


def test_repeats_until_cancelled(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every engine at its own pace."""
    pauses: list[float] = []

    def stop_after(number: int) -> Callable[[float], object]:
        async def pause(seconds: float) -> None:
            pauses.append(seconds)
            if len(pauses) == number:
                raise asyncio.CancelledError

        return pause

    monkeypatch.setattr("proxy.upstream.watch.asyncio.sleep", stop_after(3))
    asyncio.run(look.watch.repeat(look.watch.check, 2.0))

    assert (pauses, look.engine.asked.count("/health")) == ([2.0] * 3, 3)


def test_a_root_is_told_once(look: Look) -> None:
    """A model's files are read when it is first seen and when another takes its place, not every half minute."""
    look.check(2 * MODELS_EVERY + 1)
    assert look.roots == [("b", "/models/m")]

    look.engine.pages["/v1/models"] = models("m", root="/models/other")
    look.check(MODELS_EVERY)

    assert look.roots == [("b", "/models/m"), ("b", "/models/other")]
