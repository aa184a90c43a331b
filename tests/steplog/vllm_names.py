"""What the plugin in deploy/steplog reads of vLLM, and in which versions it is there.

Read off vLLM's source, which is neither imported nor run: `python -m tests.steplog.vllm_names SOURCE...`, each a wheel
or a folder of installed packages, prints what is missing in it; with --write it becomes a column of vllm_names.csv.
`pip download --no-deps vllm==VERSION` gets a wheel.
"""

import argparse
import ast
import csv
import re
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

TABLE = Path(__file__).with_name("vllm_names.csv")
_FOLDER = re.compile(r"vllm-([0-9.]+)(\+\w+)?\.dist-info")
"""The build, as in 0.32.0+cpu, is left out: its Python is the same."""


class Name(NamedTuple):
    """One name in one class of one file. Of a method the parameter may be asked for that is passed first."""

    file: str
    owner: str
    name: str
    parameter: str = ""


_SCHEDULER, _OUTPUT = "vllm/v1/core/sched/scheduler.py", "vllm/v1/core/sched/output.py"
NAMES = (
    Name(_SCHEDULER, "Scheduler", "schedule"),
    Name(_SCHEDULER, "Scheduler", "update_from_output", "scheduler_output"),
    Name(_SCHEDULER, "Scheduler", "requests"),
    Name(_SCHEDULER, "Scheduler", "vllm_config"),
    Name(_OUTPUT, "SchedulerOutput", "scheduled_new_reqs"),
    Name(_OUTPUT, "SchedulerOutput", "scheduled_cached_reqs"),
    Name(_OUTPUT, "SchedulerOutput", "num_scheduled_tokens"),
    Name(_OUTPUT, "SchedulerOutput", "finished_req_ids"),
    Name(_OUTPUT, "NewRequestData", "req_id"),
    Name(_OUTPUT, "NewRequestData", "num_computed_tokens"),
    Name(_OUTPUT, "CachedRequestData", "req_ids"),
    Name(_OUTPUT, "CachedRequestData", "resumed_req_ids"),
    Name(_OUTPUT, "CachedRequestData", "num_computed_tokens"),
    Name("vllm/v1/request.py", "Request", "num_prompt_tokens"),
    Name("vllm/v1/request.py", "Request", "num_tokens"),
    Name("vllm/v1/request.py", "Request", "num_preemptions"),
    Name("vllm/config/vllm.py", "VllmConfig", "parallel_config"),
    Name("vllm/config/parallel.py", "ParallelConfig", "data_parallel_index"),
    Name("vllm/config/parallel.py", "ParallelConfig", "data_parallel_rank"),
)
READS = {
    "jouleproxy_steplog/__init__.py": {"schedule", "update_from_output"},
    "jouleproxy_steplog/batch.py": {
        *("scheduled_new_reqs", "scheduled_cached_reqs", "num_scheduled_tokens", "finished_req_ids"),
        *("req_id", "req_ids", "resumed_req_ids", "num_computed_tokens"),
        *("num_prompt_tokens", "num_tokens", "num_preemptions"),
    },
    "jouleproxy_steplog/steps.py": {
        *("scheduled_new_reqs", "scheduled_cached_reqs", "num_scheduled_tokens", "finished_req_ids"),
        *("req_ids", "resumed_req_ids", "num_computed_tokens"),
        *("requests", "vllm_config", "parallel_config", "data_parallel_index", "data_parallel_rank"),
    },
}
"""The plugin's files, and the names above that each uses."""


class Source:
    """A vLLM that can be read: a wheel, or the folder that it is installed in."""

    def __init__(self, path: Path) -> None:
        if path.is_dir():
            names = [one.name for one in path.iterdir()]
            self._read: Callable[[str], bytes] = lambda name: (path / name).read_bytes()
        else:
            wheel = zipfile.ZipFile(path)
            names = [one.partition("/")[0] for one in wheel.namelist()]
            self._read = wheel.read
        versions = {found[1] for name in names if (found := _FOLDER.fullmatch(name))}
        if len(versions) != 1:
            raise ValueError(f"{path} holds no vLLM, or several: {versions or 'none'}")
        self.version = versions.pop()

    def tree(self, file: str) -> ast.Module | None:
        """A file's syntax; None where it is not there."""
        try:
            return ast.parse(self._read(file))
        except (KeyError, FileNotFoundError):
            return None


def has(tree: ast.Module | None, asked: Name) -> bool:
    """Whether a file has a name: as a field, a method or a property of the class, or assigned to `self` in it."""
    for node in ast.walk(tree or ast.Module([], [])):
        if isinstance(node, ast.ClassDef) and node.name == asked.owner:
            methods = [one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == asked.name]
            if asked.parameter:
                return any([one.arg for one in method.args.args[1:2]] == [asked.parameter] for method in methods)
            return bool(methods) or asked.name in _assigned(node)
    return False


def _assigned(owner: ast.ClassDef) -> Iterator[str]:
    for node in owner.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id
    for one in ast.walk(owner):
        match one:
            case ast.Attribute(value=ast.Name(id="self"), ctx=ast.Store()):
                yield one.attr


def missing(source: Source) -> list[Name]:
    """What a vLLM does not have."""
    trees = {file: source.tree(file) for file in {name.file for name in NAMES}}
    return [name for name in NAMES if not has(trees[name.file], name)]


def table() -> dict[str, dict[Name, bool]]:
    """What was found in each version."""
    with TABLE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    fields = Name._fields
    versions = [column for column in rows[0] if column not in fields]
    return {
        version: {Name(*(row[field] for field in fields)): row[version] == "yes" for row in rows}
        for version in versions
    }


def _write(found: dict[str, dict[Name, bool]]) -> None:
    versions = sorted(found, key=lambda version: [int(part) for part in version.split(".")])
    with TABLE.open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow([*Name._fields, *versions])
        rows.writerows(
            [*name, *("yes" if found[version].get(name) else "no" for version in versions)] for name in NAMES
        )


def main(arguments: Sequence[str]) -> int:
    """The exit status: 1 where something is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", type=Path)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args(arguments)
    found = table() if TABLE.exists() else {}
    complete = True
    for source in map(Source, given.sources):
        lacks = missing(source)
        complete = complete and not lacks
        found[source.version] = {name: name not in lacks for name in NAMES}
        words = [f"{name.file} has no {name.owner}.{name.name}" for name in lacks] or ["has everything"]
        print(source.version, "; ".join(words))
    if given.write:
        _write(found)
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
