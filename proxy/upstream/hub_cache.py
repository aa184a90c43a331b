"""Finds the config.json of a model that the engine named as on the Hugging Face hub, where this machine has a copy.

The cache keeps models--OWNER--NAME/snapshots/COMMIT/, and in refs/main which commit `main` was at the last download.
Source: huggingface_hub, guide "Understand caching"; the variables as its environment reference lists them.
"""

import re
from collections.abc import Mapping
from pathlib import Path

_NAME = re.compile(r"[\w.-]+(?:/[\w.-]+)?")
"""OWNER/NAME, or NAME alone: nothing that could lead out of the cache."""


def cache_folder(environment: Mapping[str, str]) -> Path:
    """Where downloads are kept."""
    if environment.get("HF_HUB_CACHE"):
        return Path(environment["HF_HUB_CACHE"]).expanduser()
    caches = environment.get("XDG_CACHE_HOME") or "~/.cache"
    home = environment.get("HF_HOME") or f"{caches}/huggingface"
    return Path(home).expanduser() / "hub"


def config_of(name: str, environment: Mapping[str, str]) -> Path | None:
    """The config.json of `main` as it was downloaded, else of the latest download; None where there is none."""
    if not _NAME.fullmatch(name) or ".." in name:
        return None
    model = cache_folder(environment) / f"models--{name.replace('/', '--')}"
    try:
        main = model / "snapshots" / (model / "refs" / "main").read_text().strip() / "config.json"
        if main.is_file():
            return main
    except (OSError, ValueError):
        pass
    found = [file for file in model.glob("snapshots/*/config.json") if file.is_file()]
    return max(found, key=lambda file: file.stat().st_mtime, default=None)
