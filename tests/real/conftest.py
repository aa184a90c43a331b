"""The proxy as a process in front of the real vLLM, started once for all tests against the real thing."""

from collections.abc import Iterator

import pytest

from tests.engine.real import RealEngine
from tests.live import LiveProxy


@pytest.fixture(scope="session")
def live(real_engine: RealEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveProxy]:
    """`jouleproxy serve` in front of the real vLLM, as people run it; tests must leave it running."""
    with LiveProxy(backends=[real_engine.url], ledger=tmp_path_factory.mktemp("live") / "ledger.db") as proxy:
        yield proxy
