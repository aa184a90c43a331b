"""What is measured: this proxy, and what others put between a client and an engine."""

import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.performance.native import BUILD

PYTHON = sys.executable
PIECES = Path(__file__).parent
ROUTER, LITELLM = "vllm-router==0.1.17", "litellm[proxy]"
"""From PyPI, each into an environment of its own."""
_WITHOUT_KEY = "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY"
"""It listens on this machine only."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a system shall listen, and whom it shall ask. admin: for its metrics. folder: empty, its own."""

    port: int
    admin: int
    engine: int
    folder: Path


@dataclass(frozen=True, slots=True)
class System:
    """How it is installed and started. environment: further variables."""

    name: str
    command: Callable[[Place], list[str | Path]]
    install: Callable[[], None] = lambda: None
    environment: Mapping[str, str] = field(default_factory=dict)


def _nginx(place: Place) -> list[str | Path]:
    configuration = place.folder / "nginx.conf"
    configuration.write_text(
        f"""
        daemon off; worker_processes 1; pid {place.folder}/nginx.pid; error_log {place.folder}/error.log crit;
        events {{ worker_connections 8192; }}
        http {{
          access_log off; client_max_body_size 64m; client_body_buffer_size 1m; client_body_temp_path {place.folder};
          proxy_temp_path {place.folder}; fastcgi_temp_path {place.folder}; uwsgi_temp_path {place.folder};
          scgi_temp_path {place.folder};
          upstream engine {{ server 127.0.0.1:{place.engine}; keepalive 1024; }}
          server {{
            listen 127.0.0.1:{place.port} backlog=4096; keepalive_requests 1000000;
            location / {{
              proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection "";
              proxy_buffering off; proxy_read_timeout 600;
            }}
          }}
        }}
        """
    )
    return ["nginx", "-p", place.folder, "-c", configuration]


def _has_nginx() -> None:
    try:
        subprocess.run(["nginx", "-v"], check=True, capture_output=True)
    except FileNotFoundError:
        raise SystemExit("nginx is missing: apt-get install nginx-light") from None


def _own(place: Place) -> list[str | Path]:
    return [
        *(PYTHON, "-m", "proxy", "serve", "--backend", f"http://127.0.0.1:{place.engine}"),
        *("--port", str(place.port), "--admin-port", str(place.admin)),
        *("--ledger", f"sqlite:///{place.folder}/ledger.db", "--meter", "modelled"),
    ]


def _environment_of(requirement: str) -> Path:
    return BUILD / requirement.partition("=")[0].partition("[")[0]


def _installer(requirement: str) -> Callable[[], None]:
    def install() -> None:
        folder = _environment_of(requirement)
        if (folder / "done").exists():
            return
        subprocess.run([PYTHON, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([folder / "bin/pip", "install", "--quiet", requirement], check=True)
        (folder / "done").touch()

    return install


def _router(place: Place) -> list[str | Path]:
    return [
        *(_environment_of(ROUTER) / "bin/vllm-router", "--host", "127.0.0.1", "--port", str(place.port)),
        *("--worker-urls", f"http://127.0.0.1:{place.engine}", "--policy", "round_robin"),
        *("--prometheus-port", str(place.admin), "--log-level", "warning"),
    ]


def _litellm(place: Place) -> list[str | Path]:
    configuration = place.folder / "litellm.yaml"
    configuration.write_text(
        f"""
model_list:
  - model_name: mock
    litellm_params: {{model: hosted_vllm/mock, api_base: "http://127.0.0.1:{place.engine}/v1", api_key: none}}
"""
    )
    command = _environment_of(LITELLM) / "bin/litellm"
    return [command, "--config", configuration, "--host", "127.0.0.1", "--port", str(place.port), "--num_workers", "1"]


def _plain(place: Place) -> list[str | Path]:
    return [
        *("env", f"ENGINE_PORT={place.engine}", PYTHON, "-m", "uvicorn", "--app-dir", PIECES, "plain_relay:app"),
        *("--port", str(place.port)),
        *("--log-level", "warning", "--no-access-log"),
    ]


SYSTEMS = {
    system.name: system
    for system in (
        System("jouleproxy", _own),
        System("nginx", _nginx, _has_nginx),
        System("vllm-router", _router, _installer(ROUTER)),
        System("httpx relay", _plain),
        System(
            "LiteLLM", _litellm, _installer(LITELLM), {"LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true"}
        ),
    )
}
DIRECT = "direct"
"""No system at all: the client asks the engine."""
