"""One typed settings object: flags over environment (JOULEPROXY_*) over one TOML file over defaults."""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings.sources import TomlConfigSettingsSource

from proxy.accounting.attribution import Policy
from proxy.errors import ConfigurationError

DEFAULT_FILE = Path("jouleproxy.toml")
LogLevel = Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(lambda given: str(given).lower())]


class Backend(BaseModel):
    """One vLLM server and the devices it runs on: one energy group.

    name: what reports call it; by default the url's host and port, without the user and password that may stand there.
    gpus: UUIDs as `jouleproxy meters` prints them; empty means all devices the meter finds.
    meter: overrides the general setting for this group. api_key: sent to the server instead of the client's key.
    model_config_file: the model's config.json, for the prior of its energy weights; found by itself when local.
    weights_file: what `jouleproxy calibrate` wrote, instead of that prior.
    step_log: Unix socket that the plugin in deploy/steplog sends to, as JOULEPROXY_STEP_LOG tells it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str
    name: str = ""
    gpus: tuple[str, ...] = ()
    meter: str | None = None
    api_key: SecretStr | None = None
    model_config_file: Path | None = None
    weights_file: Path | None = None
    step_log: Path | None = None

    @field_validator("url")
    @classmethod
    def _checked_url(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError(f"a backend's url looks like http://127.0.0.1:8000, not {url!r}")
        return url.rstrip("/").removesuffix("/v1")

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        if isinstance(given, str):
            given = {"url": given}
        if isinstance(given, dict) and not given.get("name") and isinstance(given.get("url"), str):
            given = {**given, "name": urlsplit(given["url"]).netloc.rpartition("@")[2]}
        return given


class Tenant(BaseModel):
    """Who is billed, known by keys; only their SHA-256 is kept.

    key_sha256: hex digests, made with `printf %s KEY | sha256sum`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    key_sha256: tuple[str, ...] = Field(min_length=1)

    @field_validator("key_sha256")
    @classmethod
    def _digests(cls, digests: tuple[str, ...]) -> tuple[str, ...]:
        for digest in digests:
            if not re.fullmatch(r"[0-9a-fA-F]{64}", digest):
                raise ValueError("key_sha256 holds 64 hex digits each: printf %s KEY | sha256sum")
        return tuple(digest.lower() for digest in digests)


class Settings(BaseSettings):
    """Everything that can be set. Each field is also the variable JOULEPROXY_<NAME> and a key of the TOML file."""

    model_config = SettingsConfigDict(env_prefix="JOULEPROXY_", extra="forbid", frozen=True, env_parse_none_str="none")

    backends: Annotated[tuple[Backend, ...], NoDecode] = Field(
        (Backend(url="http://127.0.0.1:8000"),),
        description="vLLM servers: a URL, or tables in the TOML file; several need tables, each with its own gpus",
    )
    host: str = Field("127.0.0.1", description="address of the traffic listener")
    port: int = Field(8080, ge=0, le=65535, description="port of the traffic listener")
    admin_host: str = Field(
        "127.0.0.1", description="address of the admin listener: /metrics, /energy/*, the live page"
    )
    admin_port: int = Field(9464, ge=0, le=65535, description="port of the admin listener")
    share_gpus: bool = Field(
        False, description="several backends may name one GPU; it is divided by predicted joules, grade D"
    )
    step_log: Path | None = Field(None, description="Unix socket of the one backend's step log; several have their own")
    step_log_mode: str = Field(
        "0600", pattern=r"^0?[0-7]{3}$", description="permissions of the step logs' sockets, as octal text: 0660"
    )
    weights_file: Path | None = Field(None, description="what `jouleproxy calibrate` wrote, for the one backend")
    meter: str = Field("auto", description="auto, nvml, rapl, modelled[:idle_w=W,core_w=W] or recorded:FILE.csv")
    sample_period_ms: int = Field(50, ge=5, le=10_000, description="how often meters are polled, in milliseconds")
    policy: Policy = Field("weighted", description="who pays: weighted, tokens, output-tokens or time")
    ledger: str = Field(
        "sqlite:///jouleproxy.db", description="where rows are kept: sqlite:///FILE or postgresql+psycopg://…"
    )
    instance: str = Field("main", min_length=1, description="this proxy's own name in a ledger that several share")
    tenants: tuple[Tenant, ...] = Field((), description="who may ask and is billed; empty: everybody is `default`")
    max_tenant_labels: int = Field(100, ge=1, description="tenants shown by name in metrics; the rest is `other`")
    max_body_mb: int = Field(32, ge=1, description="largest request body, in MiB; larger ones get 413")
    connect_timeout_s: float = Field(5.0, gt=0, description="seconds to reach a backend before the next one is tried")
    answer_timeout_s: float = Field(900.0, gt=0, description="seconds a backend may be silent before 504")
    health_period_s: float = Field(2.0, gt=0, description="seconds between health checks of each backend")
    scrape_period_s: float = Field(1.0, gt=0, description="seconds between reads of each engine's own counters")
    prefill_wait_s: float = Field(10.0, gt=0, description="how long a window waits for a request's first token")
    silent_wait_s: float = Field(0.5, gt=0, description="how long a window waits for a non-streaming answer")
    unmeasured_after_s: float = Field(30.0, gt=0, description="a gap between readings longer than this is unmeasured")
    retention_days: int | None = Field(None, ge=1, description="days that request rows are kept; none: for ever")
    log_level: LogLevel = Field("info", description="debug, info, warning or error")

    @field_validator("backends", mode="before")
    @classmethod
    def _from_text(cls, given: Any) -> Any:
        if isinstance(given, str):
            return (
                json.loads(given)
                if given.lstrip().startswith("[")
                else [u.strip() for u in given.split(",") if u.strip()]
            )
        return given

    @model_validator(mode="after")
    def _consistent(self) -> "Settings":
        names = [backend.name for backend in self.backends]
        if not names:
            raise ValueError("at least one backend is needed: --backend http://127.0.0.1:8000")
        if len(set(names)) < len(names):
            raise ValueError(f"backends need different names, these are given: {', '.join(names)}")
        if len(names) > 1 and (self.step_log or self.weights_file):
            raise ValueError("with several backends each has step_log and weights_file in its own [[backends]] table")
        return self

    @model_validator(mode="after")
    def _energy_counts_once(self) -> "Settings":
        if self.share_gpus:
            return self
        claimed: dict[str, str] = {}
        for backend in self.backends:
            for gpu in backend.gpus:
                if gpu in claimed:
                    raise ValueError(
                        f"{gpu} is claimed by {claimed[gpu]} and {backend.name}; energy must not count twice. "
                        "If both run on it, set share_gpus = true: it is divided by predicted joules, grade D"
                    )
                claimed[gpu] = backend.name
        if len(self.backends) > 1 and any(not backend.gpus and backend.meter is None for backend in self.backends):
            raise ValueError(
                "with several backends each needs its own gpus = [UUID, …] or its own meter, else the same energy "
                "would count twice; `jouleproxy meters` prints the UUIDs. If they share a GPU, set share_gpus = true"
            )
        return self

    @field_validator("tenants")
    @classmethod
    def _own_keys(cls, tenants: tuple[Tenant, ...]) -> tuple[Tenant, ...]:
        owner: dict[str, str] = {}
        for tenant in tenants:
            for digest in tenant.key_sha256:
                if owner.setdefault(digest, tenant.name) != tenant.name:
                    raise ValueError(f"{owner[digest]} and {tenant.name} have the same key; who would pay?")
        return tenants

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, then environment, then the TOML file given to `load_settings`."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, _file.path)


class _File:
    path: Path | None = None


_file = _File()


def load_settings(file: Path | None, **flags: Any) -> Settings:
    """The settings of this run. Flags that are None were not given.

    file: a TOML file; None takes jouleproxy.toml in the working folder if it is there.
    Raises ConfigurationError with one line per mistake.
    """
    if file is not None and not file.is_file():
        raise ConfigurationError(f"the settings file {file} does not exist")
    chosen = file or (DEFAULT_FILE if DEFAULT_FILE.is_file() else None)
    _file.path = chosen
    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        raise ConfigurationError(_readable(error)) from None
    except ValueError as error:
        raise ConfigurationError(f"{chosen or 'settings'}: {error}") from None
    finally:
        _file.path = None


def _readable(error: ValidationError) -> str:
    lines = []
    for mistake in error.errors():
        where = ".".join(str(part) for part in mistake["loc"])
        text = mistake["msg"].removeprefix("Value error, ")
        lines.append(f"{where}: {text}" if where else text)
    return "\n".join(lines)


def key_digest(key: str) -> str:
    """SHA-256 of a tenant's key in hex, as settings hold it."""
    return hashlib.sha256(key.encode()).hexdigest()


def multiprocess_warning() -> str | None:
    """vLLM exports PROMETHEUS_MULTIPROC_DIR for its own processes; shared with us the files would mix."""
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        return "PROMETHEUS_MULTIPROC_DIR is set; jouleproxy is one process and ignores it. Unset it for the proxy."
    return None
