"""
The versions of vLLM that the README names have all that the plugin reads of them.
"""

import ast
import re
import zipfile
from pathlib import Path

import pytest

from tests.engine.real import REPOSITORY, VENV
from tests.steplog.conftest import PLUGIN
from tests.steplog.vllm_names import NAMES, READS, Name, Source, has, missing, table

README = (REPOSITORY / "README.md").read_text()


def test_every_version_that_was_looked_at_has_everything() -> None:
    """The README names the first and the last of them."""
    found = table()

    assert {version: {*NAMES} for version in found} == {
        v: {n for n, there in names.items() if there} for v, names in found.items()
    }
    claim = re.search(r"vLLM's code from (\S+) to (\S+) has what the plugin needs", README)
    assert claim is not None
    minors = [version.rpartition(".")[0] for version in found]
    assert [minors[0], minors[-1]] == [*claim.groups()]


def test_the_installed_vllm_has_everything() -> None:
    """And is in the table: a new version gets its column by `python -m tests.steplog.vllm_names`."""
    folders = list(VENV.glob("lib/python*/site-packages"))
    if not folders:
        pytest.skip(f"no vLLM in {VENV}: deploy/engine install makes one")
    source = Source(folders[0])

    assert [] == missing(source)
    assert source.version in table()


def names_in(path: Path) -> set[str]:
    """All that a file looks up on something: by a dot, or by name."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    texts = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return texts | {node.attr for node in nodes if isinstance(node, ast.Attribute)}


def test_what_is_asked_for_is_what_the_plugin_reads() -> None:
    """No name is in the list that the plugin does without."""
    asked = {name.name for name in NAMES}

    assert asked == set().union(*READS.values())
    for file, reads in READS.items():
        assert reads == names_in(PLUGIN / file) & asked, file


FILE = """
class Other:
    field: int

class Held:
    field: int = 0

    def __init__(self):
        self.assigned: dict = {}
        self.read = self.looked_at.further
        local = 1

    @property
    def told(self): ...

    def method(self, first, second): ...
"""


@pytest.mark.parametrize(
    ("owner", "name", "parameter", "there"),
    [
        *[("Held", name, "", True) for name in ("field", "assigned", "read", "told", "method")],
        *[("Held", name, "", False) for name in ("local", "looked_at", "further", "first", "missing")],
        ("Held", "method", "first", True),
        ("Held", "method", "second", False),
        ("Other", "method", "", False),
        ("Nobody", "field", "", False),
    ],
)
def test_a_name_is_found_where_it_is_and_nowhere_else(
    tmp_path: Path, owner: str, name: str, parameter: str, there: bool
) -> None:
    """Fields, methods, properties and what is assigned to `self`; in a wheel and in a folder alike."""
    (tmp_path / "vllm-1.2.3+cpu.dist-info").mkdir()
    (tmp_path / "held.py").write_text(FILE)
    with zipfile.ZipFile(tmp_path / "vllm.whl", "w") as wheel:
        wheel.writestr("vllm-1.2.3.dist-info/METADATA", "")
        wheel.writestr("held.py", FILE)
    for source in (Source(tmp_path), Source(tmp_path / "vllm.whl")):
        assert "1.2.3" == source.version
        assert there == has(source.tree("held.py"), Name("held.py", owner, name, parameter))
        assert not has(source.tree("gone.py"), Name("gone.py", owner, name, parameter))
