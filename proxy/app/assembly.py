"""Where the parts meet: builds the service from settings, starts what must run, and ends it in order."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import FastAPI
from prometheus_client import CollectorRegistry, make_asgi_app

from proxy.accounting.samples import Sample
from proxy.accounting.units import MILLISECOND, SECOND, Microjoules, Nanoseconds
from proxy.accounting.unseen import EngineCounters
from proxy.app.build import engine_of, group_of, meters_of, priors_of
from proxy.app.sharing import distinct
from proxy.app.step_logs import StepLogs
from proxy.errors import MeterError
from proxy.metrics import BooksCollector, RequestHistograms
from proxy.pages import exact_page, openai_errors, status_routes
from proxy.ports import Meter
from proxy.relay import Relay
from proxy.reports.finder import Finder
from proxy.reports.routes import energy_routes
from proxy.routes import InFront, RelayEndpoint, Tenants
from proxy.sampler import Sampler
from proxy.settings import Settings, key_digest
from proxy.settlement import Settlement
from proxy.stores import open_store
from proxy.upstream.pool import Pool
from proxy.upstream.watch import Watch

_log = logging.getLogger(__name__)
DAY_NS = 86_400 * SECOND


def monotonic() -> Nanoseconds:
    """The clock of this process."""
    return Nanoseconds(time.monotonic_ns())


class Service:
    """One proxy: its loops, its two applications, its ledger.

    failed: set with the reason when a loop died; whoever serves must stop then.
    """

    def __init__(self, settings: Settings, *, on_failure: Callable[[BaseException], None]) -> None:
        self.settings = settings
        self._on_failure = on_failure
        self._tasks: list[asyncio.Task[None]] = []
        opened = {backend.name: meters_of(backend, settings) for backend in settings.backends}
        self.meters = distinct(opened, share=settings.share_gpus)
        self._by_name = {meter.name: meter for meters in self.meters.values() for meter in meters}
        self.pool = Pool([backend.name for backend in settings.backends])
        self.engines = {backend.name: engine_of(backend, settings) for backend in settings.backends}
        self._priors = {b.name: priors_of(b, opened[b.name], settings) for b in settings.backends}
        self.groups = {b.name: group_of(b, self.meters[b.name], settings, self._priors) for b in settings.backends}
        keep_ns = None if settings.retention_days is None else settings.retention_days * DAY_NS
        self.store = open_store(settings.ledger, writer=settings.instance, keep_ns=keep_ns)
        self.registry = CollectorRegistry()
        histograms = RequestHistograms(self.registry)
        self.settlement = Settlement(
            self.groups,
            self._by_name,
            self.store,
            clock=monotonic,
            known={
                name: Microjoules(counter_uj)
                for name, meter in self._by_name.items()
                if (counter_uj := self.store.last_counter(name, meter.epoch)) is not None
            },
            on_finished=histograms.finished,
        )
        self.step_logs = StepLogs(settings, self.groups, self.settlement)
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

    def traffic(self) -> InFront:
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
        endpoint = RelayEndpoint(relay, tenants=tenants, max_body=limit, clock=monotonic)
        app.mount("/", endpoint)
        return InFront(endpoint, app)

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
        self.step_logs.open(monotonic())
        await asyncio.gather(*(self._watch.check(name) for name in self.engines))

        def post(meter: Meter, sample: Sample, call: Nanoseconds) -> None:
            loop.call_soon_threadsafe(self.settlement.sampled, meter, sample, call)

        def miss(meter: Meter, _: MeterError) -> None:
            loop.call_soon_threadsafe(self.settlement.failed, meter)

        def die(error: BaseException) -> None:
            loop.call_soon_threadsafe(self._on_failure, error)

        self._sampler = Sampler(
            [*self._by_name.values()],
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
        self.step_logs.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.settlement.step(force=True)
        await asyncio.to_thread(self.store.close)
        for engine in self.engines.values():
            await engine.close()
        for meter in self._by_name.values():
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
        self.step_logs.look(backend, at)

    def _weigh(self, backend: str, root: str) -> None:
        weights = self._priors[backend].for_model(root)
        if weights is not None:
            with self.settlement.lock:
                self.groups[backend].weigh(weights)
