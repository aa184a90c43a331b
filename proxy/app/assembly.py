"""Where the parts meet: builds the service from settings, starts what must run, and ends it in order."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from prometheus_client import CollectorRegistry, make_asgi_app

from proxy.accounting.group import Group, Patience
from proxy.accounting.samples import Sample
from proxy.accounting.units import MILLISECOND, SECOND, Microjoules, Nanoseconds
from proxy.accounting.unseen import EngineCounters
from proxy.accounting.weights import LLAMA_8B, roofline_prior
from proxy.errors import ConfigurationError, MeterError
from proxy.meters import open_meters
from proxy.metrics import BooksCollector, RequestHistograms
from proxy.pages import exact_page, openai_errors, status_routes
from proxy.ports import Meter
from proxy.relay import Relay
from proxy.reports import Finder, energy_routes
from proxy.routes import RelayEndpoint, Tenants
from proxy.sampler import Sampler
from proxy.settings import Backend, Settings, key_digest
from proxy.settlement import Settlement
from proxy.stores import open_store
from proxy.upstream.client import EngineClient
from proxy.upstream.model_files import read_shape
from proxy.upstream.pool import Pool
from proxy.upstream.watch import Watch

_log = logging.getLogger(__name__)
DAY_NS = 86_400 * SECOND


def monotonic() -> Nanoseconds:
    """The clock of this process."""
    return Nanoseconds(time.monotonic_ns())


def _span(seconds: float) -> Nanoseconds:
    return Nanoseconds(round(seconds * SECOND))


def grade_of(meters: list[Meter]) -> str:
    """B: counter and token times; C: a power integral; D: an estimate. The worst meter decides."""
    if any(meter.estimated for meter in meters):
        return "D"
    return "C" if any(meter.epoch.startswith("integral:") for meter in meters) else "B"


class Service:
    """One proxy: its loops, its two applications, its ledger.

    failed: set with the reason when a loop died; whoever serves must stop then.
    """

    def __init__(self, settings: Settings, *, on_failure: Callable[[BaseException], None]) -> None:
        self.settings = settings
        self._on_failure = on_failure
        self._tasks: list[asyncio.Task[None]] = []
        self.meters = {backend.name: _meters_of(backend, settings) for backend in settings.backends}
        _refuse_shared(self.meters)
        self.pool = Pool([backend.name for backend in settings.backends])
        self.engines = {backend.name: _engine(backend, settings) for backend in settings.backends}
        self.groups = {b.name: _group(b, self.meters[b.name], settings) for b in settings.backends}
        keep_ns = None if settings.retention_days is None else settings.retention_days * DAY_NS
        self.store = open_store(settings.ledger, writer=settings.instance, keep_ns=keep_ns)
        self.registry = CollectorRegistry()
        histograms = RequestHistograms(self.registry)
        by_name = {meter.name: meter for meters in self.meters.values() for meter in meters}
        self.settlement = Settlement(
            self.groups,
            by_name,
            self.store,
            clock=monotonic,
            known={
                name: Microjoules(counter_uj)
                for name, meter in by_name.items()
                if (counter_uj := self.store.last_counter(name, meter.epoch)) is not None
            },
            on_finished=histograms.finished,
        )
        self.registry.register(
            BooksCollector(
                self.settlement,
                clock=monotonic,
                backend_up=lambda: {name: member.up for name, member in self.pool.members.items()},
                dropped_rows=lambda: self.store.folded_rows,
                ledger_behind=lambda: self.store.behind,
                max_tenants=settings.max_tenant_labels,
            )
        )
        self._finder = Finder(self.store, self.settlement, monotonic)
        self._watch = Watch(self.engines, self.pool, clock=monotonic, on_counters=self._scraped, on_root=self._weigh)
        self._sampler: Sampler | None = None

    def traffic(self) -> FastAPI:
        """The application for clients."""
        digests = {digest: tenant.name for tenant in self.settings.tenants for digest in tenant.key_sha256}
        tenants = Tenants(digests, key_digest, configured=bool(self.settings.tenants))
        app = FastAPI(title="jouleproxy", docs_url=None, redoc_url=None, openapi_url=None)
        openai_errors(app)
        app.include_router(energy_routes(self.store, self._finder, tenants.of, whole=False))
        relay = Relay(
            pool=self.pool, engines=self.engines, groups=self.groups, clock=monotonic, wall_clock_ns=time.time_ns
        )
        limit = self.settings.max_body_mb * 2**20
        app.mount("/", RelayEndpoint(relay, tenants=tenants, max_body=limit, clock=monotonic))
        return app

    def admin(self) -> FastAPI:
        """The application for operators; runs on its own thread, because rendering metrics takes time."""
        app = FastAPI(title="jouleproxy admin", redoc_url=None)
        openai_errors(app)
        app.include_router(energy_routes(self.store, self._finder, lambda _: None, whole=True))
        app.include_router(status_routes(ready=self.ready))
        app.router.routes.append(exact_page("/metrics", make_asgi_app(self.registry)))
        return app

    def ready(self) -> str | None:
        """None when requests can be taken and metered, else what is missing."""
        if not any(member.up and member.models for member in self.pool.members.values()):
            return "no backend has answered its health check yet"
        if any(group.settled_until is None for group in self.groups.values()):
            return "a meter has given no reading yet"
        if self.store.last_error is not None:
            return f"the ledger cannot write ({self.store.last_error}); {self.store.behind} postings wait"
        return None

    async def start(self) -> None:
        """Looks at every backend once, then starts the loops. Must run on the loop that serves the traffic."""
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(self._watch.check(name) for name in self.engines))
        meters = [meter for meters in self.meters.values() for meter in meters]

        def post(meter: Meter, sample: Sample, call: Nanoseconds) -> None:
            loop.call_soon_threadsafe(self.settlement.sampled, meter, sample, call)

        def miss(meter: Meter, _: MeterError) -> None:
            loop.call_soon_threadsafe(self.settlement.failed, meter)

        def die(error: BaseException) -> None:
            loop.call_soon_threadsafe(self._on_failure, error)

        self._sampler = Sampler(
            meters,
            period=Nanoseconds(self.settings.sample_period_ms * MILLISECOND),
            clock=monotonic,
            on_sample=post,
            on_failure=miss,
            on_death=die,
        )
        self._sampler.start()
        self._keep(self.settlement.run())
        self._keep(self._watch.repeat(self._watch.check, self.settings.health_period_s))
        self._keep(self._watch.repeat(self._watch.scrape, self.settings.scrape_period_s))

    async def stop(self) -> None:
        """Ends the loops, divides what is left, and closes the ledger; call after the last answer."""
        if self._sampler is not None:
            await asyncio.to_thread(self._sampler.sweep_and_stop)
            await asyncio.sleep(0)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.settlement.step(force=True)
        await asyncio.to_thread(self.store.close)
        for engine in self.engines.values():
            await engine.close()
        for meters in self.meters.values():
            for meter in meters:
                meter.close()

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.append(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_failure(error)

    def _scraped(self, backend: str, counters: EngineCounters | None, at: Nanoseconds) -> None:
        with self.settlement.lock:
            self.groups[backend].scraped(counters, at)

    def _weigh(self, backend: str, root: str) -> None:
        """A model in a folder of this machine tells its own shape; a config file in the settings goes first."""
        configured = next(b.model_config_file for b in self.settings.backends if b.name == backend)
        shape = None if configured else read_shape(Path(root))
        if shape is not None:
            self.groups[backend].weights = roofline_prior(shape)


def _meters_of(backend: Backend, settings: Settings) -> list[Meter]:
    spec = backend.meter or settings.meter
    try:
        return list(open_meters(spec, backend.gpus))
    except MeterError as error:
        raise ConfigurationError(f"the meter {spec!r} of backend {backend.name} cannot be opened: {error}") from error


def _refuse_shared(meters: dict[str, list[Meter]]) -> None:
    owner: dict[str, str] = {}
    for backend, own in meters.items():
        for meter in own:
            if meter.name in owner:
                raise ConfigurationError(
                    f"{meter.name} would be counted for {owner[meter.name]} and for {backend}: energy must not count "
                    "twice. Give each backend its own gpus, or run one proxy per backend."
                )
            owner[meter.name] = backend


def _engine(backend: Backend, settings: Settings) -> EngineClient:
    return EngineClient(
        backend.url,
        backend.name,
        connect_timeout_s=settings.connect_timeout_s,
        answer_timeout_s=settings.answer_timeout_s,
        api_key=backend.api_key.get_secret_value() if backend.api_key else None,
    )


def _group(backend: Backend, meters: list[Meter], settings: Settings) -> Group:
    shape = LLAMA_8B
    if backend.model_config_file is not None:
        told = read_shape(backend.model_config_file)
        if told is None:
            raise ConfigurationError(f"model_config_file of {backend.name}: {backend.model_config_file} has no shape")
        shape = told
    return Group(
        backend.name,
        [meter.name for meter in meters],
        weights=roofline_prior(shape),
        patience=Patience(
            prefill=_span(settings.prefill_wait_s),
            silent=_span(settings.silent_wait_s),
            scrape=_span(2 * settings.scrape_period_s),
            gap=_span(settings.unmeasured_after_s),
        ),
        policy=settings.policy,
        grade=grade_of(meters),
        estimated=any(meter.estimated for meter in meters),
    )
