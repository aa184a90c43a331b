"""Rules for the files of the load generator."""

import ast
import sys
from pathlib import Path

import loadgen

FILES = sorted(Path(loadgen.__file__).parent.glob("*.py"))
ALLOWED = ("loadgen", "proxy.wire", "proxy.accounting.units")


def test_no_file_bears_the_name_of_a_standard_module() -> None:
    """Locust puts this folder first on the path while it loads chat.py, where such a file would stand in for the real
    module."""
    assert [file.name for file in FILES if file.stem in sys.stdlib_module_names and file.stem != "__init__"] == []


def test_the_load_generator_is_an_outside_witness() -> None:
    """Of the proxy it may know how the wire looks and what a unit is, and nothing of its clock or ledger."""
    strange = [
        f"{file.name}: {node.module}"
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in ("proxy", "loadgen")
        if not node.module.startswith(ALLOWED)
    ]

    assert strange == []
