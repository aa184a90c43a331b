"""
`jouleproxy calibrate` against a simulated engine and a meter whose truth is known: it finds it, writes it, and refuses.
"""

import asyncio
import io
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from rich.console import Console

from proxy.accounting.activity import Work
from proxy.accounting.calibration import Stretch
from proxy.accounting.terms import terms_of
from proxy.accounting.weights import LLAMA_8B, roofline_prior
from proxy.commands import calibrate as command
from proxy.commands.calibrate import CalibrateOptions, calibrate, chosen
from proxy.commands.calibration.course import Ran
from proxy.commands.calibration.server import Card
from proxy.commands.calibration.timetable import Timetable
from proxy.errors import ConfigurationError, Refused
from proxy.settings import Backend, Settings, load_settings
from proxy.upstream.prior import Priors
from proxy.upstream.weights_file import read_weights
from tests.accounting.test_calibration import ran, truth
from tests.commands.calibration.step_meter import StepMeter
from tests.engine.real import free_port
from tests.engine.simulated import SimulatedEngine

PRIOR = roofline_prior(LLAMA_8B)
TRUTH = replace(PRIOR, step=PRIOR.step * 0.8, prefill=PRIOR.prefill * 2.0, decode=PRIOR.decode * 1.5)
SHORT = 0.4
"""Minutes; stretches of less than a second."""


@pytest.fixture(scope="module")
def engine() -> Iterator[SimulatedEngine]:
    """Steps so long that this process keeps up with 32 streams: what came late by then would count for other steps."""
    with SimulatedEngine(step_s=0.02, prefill_s_per_token=1e-5, max_model_len=4096) as engine:
        yield engine


class Bench:
    """The command with everything around it in hand."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.output = folder / "weights.toml"
        self.screen = io.StringIO()
        self._monkeypatch = monkeypatch

    def run(self, engine: SimulatedEngine, meter: StepMeter | None = None, **options: object) -> int:
        self.meter = meter or StepMeter(engine, TRUTH)
        self._monkeypatch.setattr(command, "meters_of", lambda backend, settings: [self.meter])
        return calibrate(self.settings(engine.url), self.options(**options), Console(file=self.screen, width=120))

    def concluded(
        self, engine: SimulatedEngine, stretches: tuple[Stretch, ...], *, idle_w: float = 90.0, estimated: bool = False
    ) -> int:
        """Only the end of it."""
        table = Timetable(3, 2.5, 0.3, 5.0, 1.0, 150.0)
        meters = [StepMeter(engine, PRIOR, estimated=estimated)]
        backend, card = Backend(url="http://127.0.0.1:8000"), Card("tiny", None, 2048)
        console = Console(file=self.screen, width=120)
        return command._concluded(
            Ran(stretches, idle_w, 10, 12.0, table), PRIOR, card, backend, meters, self.output, console
        )

    def settings(self, url: str) -> Settings:
        return Settings(backends=(Backend(url=url),))

    def options(self, **given: object) -> CalibrateOptions:
        return replace(
            CalibrateOptions(
                backend=None,
                model=None,
                meter=None,
                gpus=(),
                minutes=SHORT,
                output=self.output,
                step_log=None,
                allow_estimated=False,
                yes=True,
            ),
            **given,  # type: ignore[arg-type]
        )

    @property
    def shown(self) -> str:
        return " ".join(self.screen.getvalue().split())


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


def test_the_truth_behind_the_meter_is_found_and_written(engine: SimulatedEngine, bench: Bench) -> None:
    """Ratios within a tenth for the large weights, in a file that the service starts with."""
    status = bench.run(engine)

    assert status == 0, bench.screen.getvalue()
    weights, about = read_weights(bench.output)
    assert weights.prefill / weights.step == pytest.approx(TRUTH.prefill / TRUTH.step, rel=0.1)
    assert weights.decode / weights.step == pytest.approx(TRUTH.decode / TRUTH.step, rel=0.2)
    assert weights.step == pytest.approx(TRUTH.step, rel=0.1)
    assert {"step", "prefill", "decode"} <= set(about.fitted)
    assert (about.model, about.gpu, about.driver) == ("tiny", "NVIDIA H100 80GB HBM3", "570.86.15")
    assert (about.meter, about.estimated, about.steps) == ("nvml, energy counter", False, "token times")
    assert about.idle_w == pytest.approx(90.0, rel=0.05)
    assert about.held_out_mape_percent < about.prior_mape_percent
    assert about.requests > 50
    started = Priors("b", [bench.meter], weights_file=bench.output, config_file=None).at_start()
    assert started == weights
    assert bench.meter.closed
    assert "prefill, long prompts" in bench.shown
    assert f"written: {bench.output}" in bench.shown
    assert "The stretches were short" in bench.shown


def test_what_is_no_better_than_the_prior_is_not_written(bench: Bench, simulated_engine: SimulatedEngine) -> None:
    """The tables are shown all the same, with the reason and status 1."""
    chance = random.Random(3)
    works = {"decode × 1": Work(decode=100, decode_context=1e4, steps=100), "decode × 8": Work(decode=800, steps=100)}
    stretches = tuple(
        Stretch(name, repeat, work, sum(terms_of(PRIOR, work)) * chance.uniform(0.2, 3), 1.0)
        for repeat in range(3)
        for name, work in works.items()
    )
    status = bench.concluded(simulated_engine, stretches)

    assert status == 1
    assert bench.shown.endswith("Nothing was written.")
    assert "decode × 8" in bench.shown
    assert not bench.output.exists()


@pytest.mark.parametrize(("estimated", "wanted"), [(False, 1), (True, 0)])
def test_a_device_that_is_as_busy_without_the_load(
    bench: Bench, simulated_engine: SimulatedEngine, estimated: bool, wanted: int
) -> None:
    """Another program on the same GPU: refused, and only a trial with an estimate goes on, with a warning."""
    stretches = ran(truth(decode=2.0))
    power_w = sum(one.energy_j for one in stretches) / sum(one.busy_s for one in stretches)

    status = bench.concluded(simulated_engine, tuple(stretches), idle_w=power_w * 0.95, estimated=estimated)

    assert status == wanted
    assert "something else runs on the device" in bench.shown
    assert bench.output.exists() is estimated


def when(ready: Callable[[], bool], act: Callable[[], object]) -> threading.Thread:
    """Does something as soon as something is so."""

    def wait() -> None:
        deadline = time.monotonic() + 20
        while not ready() and time.monotonic() < deadline:
            time.sleep(0.01)
        act()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def test_traffic_that_comes_during_the_load_ends_it(bench: Bench) -> None:
    """A single foreign prompt of three words is enough; nothing is written."""
    with SimulatedEngine(step_s=0.003, prefill_s_per_token=1e-5) as engine:
        body = {"model": "tiny", "prompt": "who is there", "max_tokens": 2}

        def running() -> bool:
            return len([one for one in engine.requests if one.method == "POST"]) > 40

        stranger = when(running, lambda: httpx.post(f"{engine.url}/v1/completions", json=body))
        status = bench.run(engine)
        stranger.join()

    assert status == 1
    assert "other traffic: the server read" in bench.shown
    assert "nothing was written" in bench.shown
    assert not bench.output.exists()


def test_a_server_in_use_is_refused_before_anything_is_sent(bench: Bench) -> None:
    """Also when only its counters move."""
    with SimulatedEngine(step_s=0.02) as engine:
        body = {"model": "tiny", "prompt": "hello", "max_tokens": 120, "ignore_eos": True}
        busy = threading.Thread(target=lambda: httpx.post(f"{engine.url}/v1/completions", json=body, timeout=30))
        busy.start()
        engine.wait_for_request()
        with pytest.raises(ConfigurationError, match=r"is in use \(1 requests run, 0 wait, .* while nothing else runs"):
            bench.run(engine)
        assert len([one for one in engine.requests if one.method == "POST"]) == 1
        busy.join()


def test_ctrl_c_ends_it_cleanly(bench: Bench) -> None:
    """Status 130, no file, and no request left on the server."""
    with SimulatedEngine(step_s=0.003) as engine:
        stopping = when(lambda: len(engine.requests) > 60, lambda: os.kill(os.getpid(), signal.SIGINT))
        status = bench.run(engine)
        stopping.join()
        assert all(one.over.wait(5) for one in engine.requests)

    assert status == 130
    assert "stopped; nothing was written" in bench.shown
    assert not bench.output.exists()
    assert bench.meter.closed


def test_a_server_that_dies_ends_it(bench: Bench) -> None:
    """Status 1 and the reason."""
    with SimulatedEngine(step_s=0.003) as engine:
        dying = when(lambda: len(engine.requests) > 60, engine.down)
        status = bench.run(engine)
        dying.join()

    assert status == 1
    assert "nothing was written" in bench.shown


def test_an_unreachable_server(bench: Bench, simulated_engine: SimulatedEngine) -> None:
    """One sentence with the address."""
    settings = bench.settings(f"http://127.0.0.1:{free_port()}")
    bench._monkeypatch.setattr(command, "meters_of", lambda *_: [StepMeter(simulated_engine, TRUTH)])

    with pytest.raises(Refused, match=r"127\.0\.0\.1:\d+ cannot be reached"):
        calibrate(settings, bench.options(), Console(file=bench.screen))


def test_a_model_it_does_not_serve(bench: Bench, simulated_engine: SimulatedEngine) -> None:
    """The message names what there is."""
    with pytest.raises(ConfigurationError, match="does not serve 'huge'; it serves: tiny"):
        bench.run(simulated_engine, model="huge")


def test_a_page_without_counters(bench: Bench, simulated_engine: SimulatedEngine) -> None:
    """Other traffic could not be seen, so it does not start."""
    simulated_engine.canned["/metrics"] = SimpleNamespace(status=404, body=b"", content_type="text/plain")  # type: ignore[assignment]

    with pytest.raises(ConfigurationError, match="does not tell vLLM's counters"):
        bench.run(simulated_engine)


def test_no_vllm_at_all(bench: Bench, simulated_engine: SimulatedEngine) -> None:
    """Something that answers, but no list of models."""
    simulated_engine.canned["/v1/models"] = SimpleNamespace(status=200, body=b"[]", content_type="text/plain")  # type: ignore[assignment]

    with pytest.raises(ConfigurationError, match="lists no model"):
        bench.run(simulated_engine)


def test_an_estimate_is_refused(bench: Bench, simulated_engine: SimulatedEngine) -> None:
    """Unless asked for by its flag."""
    meter = StepMeter(simulated_engine, TRUTH, estimated=True)

    with pytest.raises(ConfigurationError, match="--allow-estimated"):
        bench.run(simulated_engine, meter)
    assert meter.closed


def test_too_few_minutes(bench: Bench, simulated_engine: SimulatedEngine) -> None:
    """The message says how many are needed."""
    with pytest.raises(ConfigurationError, match=r"0.05 minutes are too few: .* at least --minutes 0\.\d"):
        bench.run(simulated_engine, minutes=0.05)


def test_nobody_to_ask(bench: Bench, simulated_engine: SimulatedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a terminal it wants --yes; with one it asks, and anything but yes ends it."""
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with pytest.raises(ConfigurationError, match="--yes"):
        bench.run(simulated_engine, yes=False)

    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True, readline=lambda: "n\n"))
    monkeypatch.setattr("builtins.input", lambda: "")
    assert bench.run(simulated_engine, yes=False) == 130
    assert "under full load for about" in bench.shown


SETTINGS = """
[[backends]]
name = "a"
url = "http://127.0.0.1:8000"
gpus = ["GPU-1"]
api_key = "secret"

[[backends]]
name = "b"
url = "http://127.0.0.1:8001"
meter = "rapl"
"""


def test_the_settings_of_the_service_are_used(bench: Bench, tmp_path: Path) -> None:
    """By name or by URL; options go over them; a URL they do not hold is one without anything."""
    file = tmp_path / "jouleproxy.toml"
    file.write_text(SETTINGS)
    settings = load_settings(file)

    by_name = chosen(settings, bench.options(backend="a"))
    by_url = chosen(settings, bench.options(backend="http://127.0.0.1:8001/v1", meter="modelled"))
    other = chosen(settings, bench.options(backend="http://127.0.0.1:9", gpus=("GPU-7",), step_log=Path("s.sock")))

    assert (by_name.gpus, by_name.api_key is not None) == (("GPU-1",), True)
    assert (by_url.name, by_url.meter) == ("b", "modelled")
    common = chosen(Settings(step_log=Path("all.sock")), bench.options())
    assert common.step_log == Path("all.sock")
    assert (other.gpus, other.step_log, other.api_key) == (("GPU-7",), Path("s.sock"), None)
    with pytest.raises(ConfigurationError, match=r"choose one with --backend \(a, b\)"):
        chosen(settings, bench.options())
    with pytest.raises(ConfigurationError, match="looks like"):
        chosen(settings, bench.options(backend="c"))


def test_the_server_s_key_is_sent(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the settings, with every request."""
    with SimulatedEngine(api_key="k") as engine:
        settings = Settings(backends=(Backend(url=engine.url, api_key="k"),))  # type: ignore[arg-type]
        card = asyncio.run(command._checked(settings, settings.backends[0], bench.options()))

    assert card.model == "tiny"
