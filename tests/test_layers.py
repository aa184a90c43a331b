"""
The arrows of the architecture and the budgets of its files, read off the source.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROXY = sorted(path.relative_to(ROOT) for path in (ROOT / "proxy").rglob("*.py"))
LOADGEN = sorted(path.relative_to(ROOT) for path in (ROOT / "loadgen").rglob("*.py"))

RANKS = [
    {"errors"},
    {"accounting"},
    {"wire"},
    {"ports"},
    {"relay", "sampler", "settlement", "meters", "upstream", "stores", "asgi"},
    {"routes", "reports", "pages", "metrics", "settings"},
    {"app"},
    {"commands"},
    {"__main__"},
]
"""From the bottom up; a part imports itself and lower ranks, never a neighbour."""
PURE = {"errors", "accounting", "wire", "ports"}
IMPURE = {
    *("asyncio", "threading", "multiprocessing", "subprocess", "signal", "socket", "ssl", "http", "urllib"),
    *("os", "sys", "pathlib", "io", "tempfile", "shutil", "sqlite3", "time", "datetime", "random", "secrets"),
    *("uuid", "logging", "warnings"),
}
"""Standard modules that reach outside: a clock, a file, a network, a thread, chance, a log."""
HOMES = {
    "pynvml": {"meters/nvml_driver.py"},
    "prometheus_client": {"metrics.py", "app/"},
    "httptools": {"upstream/connection.py"},
    "httpx": {"upstream/client.py", "commands/"},
    "sqlalchemy": {"stores/"},
    "fastapi": {"app/", "pages.py", "reports/routes.py"},
    "starlette": {"asgi.py", "pages.py", "reports/finder.py", "routes.py"},
    "pydantic": {"settings.py"},
    "pydantic_settings": {"settings.py"},
    "uvicorn": {"commands/listener.py"},
    "uvloop": {"commands/serve.py"},
    "typer": {"__main__.py", "commands/"},
    "rich": {"__main__.py", "commands/"},
    "loadgen": {"commands/"},
}
"""Each outside library and the only places in proxy/ that know it."""
FOR_LOADGEN = ("proxy.wire", "proxy.accounting.units")
FILE_LINES, FUNCTION_LINES = 250, 40
BANNED = {"utils", "util", "helpers", "helper", "common", "core", "base", "manager", "service", "misc"}


def tree(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(), str(path))


def imported(path: Path) -> Iterator[str]:
    """Full names of all that a file imports, also inside functions."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rank(part: str) -> int:
    found = [number for number, parts in enumerate(RANKS) if part in parts]
    assert found, f"proxy/{part} has no rank: put it into RANKS here and into the map in proxy/__init__.py"
    return found[0]


def part_of(path: Path) -> str:
    return path.parts[1].removesuffix(".py")


@pytest.mark.parametrize("path", PROXY, ids=str)
def test_imports_point_down(path: Path) -> None:
    """No file knows its neighbours or what lies above it."""
    own = part_of(path)
    for name in imported(path):
        root, _, rest = name.partition(".")
        part = rest.partition(".")[0]
        if root != "proxy" or not part or part == "__version__":
            continue
        assert own != "__init__", f"{path} imports {name}"
        assert part == own or rank(part) < rank(own), f"{path} imports {name}"


@pytest.mark.parametrize("path", [p for p in PROXY if part_of(p) in PURE], ids=str)
def test_the_bottom_is_pure(path: Path) -> None:
    """No clock, no file, no network, no thread, no log and no library: what goes in decides what comes out."""
    for name in imported(path):
        root = name.partition(".")[0]
        assert root == "proxy" or root in sys.stdlib_module_names - IMPURE, f"{path} imports {name}"


@pytest.mark.parametrize("path", PROXY, ids=str)
def test_every_library_has_one_home(path: Path) -> None:
    """What an outside thing looks like is known in one place."""
    within = str(path.relative_to("proxy"))
    for name in imported(path):
        root = name.partition(".")[0]
        if root == "proxy" or root in sys.stdlib_module_names:
            continue
        assert root in HOMES, f"{path} imports {name}, a library without a home"
        assert any(within == home or (home.endswith("/") and within.startswith(home)) for home in HOMES[root]), (
            f"{path} imports {name}; its home is {', '.join(sorted(HOMES[root]))}"
        )


@pytest.mark.parametrize("path", LOADGEN, ids=str)
def test_the_load_generator_is_an_outside_witness(path: Path) -> None:
    """Of the proxy it knows what bytes and units mean, nothing else."""
    for name in imported(path):
        if name.partition(".")[0] == "proxy":
            assert name.startswith(FOR_LOADGEN), f"{path} imports {name}"


def test_no_load_file_hides_a_standard_module() -> None:
    """Locust puts loadgen/ first on the path of imports."""
    assert {path.stem for path in LOADGEN} & (sys.stdlib_module_names | {"locust", "gevent", "proxy"}) == set()


@pytest.mark.parametrize("path", [*PROXY, *LOADGEN], ids=str)
def test_budgets(path: Path) -> None:
    """A file fits into a head and a function onto a screen; each file says its one job first."""
    lines = (ROOT / path).read_text().count("\n")
    assert lines <= FILE_LINES, f"{path} has {lines} lines; the budget is {FILE_LINES}"
    module = tree(path)
    assert ast.get_docstring(module), f"{path} does not say what it is for"
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            # the head is not counted: that of a command is the table of its options
            length = (node.end_lineno or node.lineno) - node.body[0].lineno + 1
            assert length <= FUNCTION_LINES, f"{path}:{node.lineno}: {node.name} has {length} lines"


def test_names_that_say_nothing_are_not_used() -> None:
    """A file called after no subject becomes the place for everything."""
    named = [*PROXY, *LOADGEN, *(path.relative_to(ROOT) for path in (ROOT / "tests").rglob("*.py"))]
    assert [str(path) for path in named if {*path.parts[:-1], path.stem} & BANNED] == []


def test_every_part_is_on_the_map() -> None:
    """proxy/__init__.py names every part, so that a reader can begin there."""
    text = ast.get_docstring(tree(Path("proxy/__init__.py"))) or ""
    parts = {path.parts[1] for path in PROXY} - {"__init__.py"}
    assert [part for part in sorted(parts) if part not in text] == []
