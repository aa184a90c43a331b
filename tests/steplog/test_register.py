"""
The entry point that vLLM calls in each of its processes.
"""

import logging
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import jouleproxy_steplog
import pytest

from tests.steplog.conftest import PLUGIN
from tests.steplog.fake_scheduler import SchedulerBase


@pytest.fixture
def scheduler(monkeypatch: pytest.MonkeyPatch) -> type[SchedulerBase]:
    """A vLLM of which only the scheduler is there."""

    class Scheduler(SchedulerBase):
        pass

    module = ModuleType("vllm.v1.core.sched.scheduler")
    module.Scheduler = Scheduler  # type: ignore[attr-defined]
    for name in ("vllm", "vllm.v1", "vllm.v1.core", "vllm.v1.core.sched"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return Scheduler


def test_it_wraps_the_scheduler_when_told_where_to_report(
    scheduler: type[SchedulerBase], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = scheduler.schedule
    monkeypatch.setenv("JOULEPROXY_STEP_LOG", "/somewhere/steps.sock")
    jouleproxy_steplog.register()
    wrapped = scheduler.schedule
    assert wrapped is not plain
    jouleproxy_steplog.register()
    assert scheduler.schedule is wrapped


@pytest.mark.parametrize("value", [None, ""])
def test_it_does_nothing_unasked(
    scheduler: type[SchedulerBase], monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    plain = scheduler.schedule
    monkeypatch.delenv("JOULEPROXY_STEP_LOG", raising=False)
    if value is not None:
        monkeypatch.setenv("JOULEPROXY_STEP_LOG", value)
    jouleproxy_steplog.register()
    assert scheduler.schedule is plain


def test_a_vllm_it_does_not_know_starts_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("JOULEPROXY_STEP_LOG", "/somewhere/steps.sock")
    monkeypatch.setitem(sys.modules, "vllm", None)
    jouleproxy_steplog.register()
    assert "vLLM has no scheduler of a known kind" in caplog.text


def test_a_vllm_it_does_not_know_starts_with_a_broken_log_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line that would say so cannot be written."""

    def fail(*arguments: object, **named: object) -> None:
        raise BrokenPipeError

    monkeypatch.setenv("JOULEPROXY_STEP_LOG", "/somewhere/steps.sock")
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.setattr(logging.getLogger("vllm.jouleproxy_steplog"), "handle", fail)
    jouleproxy_steplog.register()


def test_the_distribution_names_the_entry_point_and_needs_nothing() -> None:
    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]
    assert project["entry-points"] == {"vllm.general_plugins": {"jouleproxy_steplog": "jouleproxy_steplog:register"}}
    assert project["dependencies"] == []
    assert callable(jouleproxy_steplog.register)


@pytest.mark.parametrize("path", sorted(PLUGIN.glob("*/*.py")), ids=lambda path: path.name)
def test_its_files_are_short_and_use_the_standard_library_only(path: Path) -> None:
    """vLLM's environment is not ours: nothing may be asked of it."""
    text = path.read_text()
    assert text.count("\n") <= 250
    roots = {line.split()[1].partition(".")[0] for line in text.splitlines() if line.startswith(("import ", "from "))}
    assert roots <= sys.stdlib_module_names | {"jouleproxy_steplog"}
