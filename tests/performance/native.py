"""The engine and the load client in C, built where git does not look."""

import subprocess
from pathlib import Path

HERE = Path(__file__).parent
BUILD = HERE.parent.parent / ".performance"
"""Programs and other people's gateways; made by the first run."""


def program(name: str) -> Path:
    """The program built from `name`.c, anew if its source has changed. Raises CalledProcessError, FileNotFoundError."""
    source, built = HERE / f"{name}.c", BUILD / name
    if not built.exists() or built.stat().st_mtime < source.stat().st_mtime:
        BUILD.mkdir(exist_ok=True)
        subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", built, source], check=True)
    return built
