"""The house: a module imports its own package and what stands above it in the order. See docs/architecture.md."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import rq_pooled

PACKAGE = Path(rq_pooled.__file__).parent
#: The packages, from the ground up. Modules at the root stand above all of them.
ORDER = (
    *(
        "config",
        "signing",
        "process",
        "retry",
        "connection",
        "store",
        "capacity",
        "pool",
        "failed",
        "queue",
        "scheduler",
    ),
    *("monitoring", "horse", "multiplexer", "parent", "worker", "flask", "cli"),
)
#: Public paths at the root that lead into packages.
FACES = {"__init__", "__main__", "health", "metrics", "sweeper"}
#: (package, what none of its modules imports).
NEVER = {("process", "redis"), ("process", "rq"), ("parent", "rq_pooled.pool"), ("horse", "rq_pooled.parent")}
MODULES = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def imports(name: str) -> set[str]:
    """Return the modules that a module imports, also inside functions; not what only the type checker sees."""
    tree = ast.parse(MODULES[name].read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = ["rq_pooled", *name.split(".")][: -node.level] if node.level else []
            base = ".".join([*package, *filter(None, [node.module])])
            within = {f"{base}.{alias.name}" for alias in node.names}
            found |= {one for one in within if one.removeprefix("rq_pooled.") in MODULES} or {base}
    return found


def level(name: str) -> int:
    """Return how far down a module stands: -1 at the root."""
    return ORDER.index(name.split(".")[0]) if "." in name else -1


@pytest.mark.parametrize("name", sorted(set(MODULES) - FACES))
def test_a_module_imports_its_package_and_what_stands_above(name: str) -> None:
    """Imports point upward: no module imports a package that stands below its own, nor what its package never may."""
    ours = {one.removeprefix("rq_pooled.") for one in imports(name) if one.startswith("rq_pooled.")}
    packages = {one if one in MODULES else f"{one}.__init__" for one in ours}
    assert {one for one in packages if level(one) > level(name)} == set()
    for package, never in NEVER:
        if name.startswith(f"{package}."):
            assert {one for one in imports(name) if f"{one}.".startswith(f"{never}.")} == set()


@pytest.mark.parametrize("package", ["", *ORDER])
def test_no_circle_inside_a_package(package: str) -> None:
    """Within a package the modules have an order, too: none imports itself by way of others."""
    names = {name for name in MODULES if name.rpartition(".")[0] == package and name not in FACES}
    graph = {name: {one for one in names if f"rq_pooled.{one}" in imports(name)} - {name} for name in names}
    assert set(TopologicalSorter(graph).static_order()) == names


@pytest.mark.parametrize("package", ORDER)
def test_a_package_re_exports_only(package: str) -> None:
    """The __init__ of a package holds a docstring, imports from the package, and their names."""
    body = ast.parse(MODULES[f"{package}.__init__"].read_text()).body
    assert {type(node) for node in body[1:]} <= {ast.ImportFrom, ast.Assign}
    assert all(isinstance(node, ast.ImportFrom) and node.level == 1 for node in body[1:-1])


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_module_is_short(name: str) -> None:
    """A module has at most 400 lines; above 300 its docstring says why it is long."""
    text = MODULES[name].read_text()
    lines = text.count("\n")
    assert lines <= 400
    assert lines <= 300 or " long" in (ast.get_docstring(ast.parse(text)) or "")


def test_the_root_is_a_hall() -> None:
    """Few modules stand at the root, beside the packages."""
    assert len([name for name in MODULES if "." not in name]) <= 20


@pytest.mark.parametrize("name", ["flask", "pool", "queue"])
def test_a_web_process_loads_no_worker(name: str) -> None:
    """What web processes import loads nothing of the worker, its parent or its horses; the package alone loads
    nothing.
    """
    code = f"import sys, rq_pooled; early = set(sys.modules); import rq_pooled.{name}; print(*early, '|', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    early, later = ({one for one in text.split() if one.startswith("rq_pooled")} for text in done.stdout.split("|"))
    assert early == {"rq_pooled"}
    assert not {one for one in later if one.startswith(("rq_pooled.worker", "rq_pooled.parent", "rq_pooled.horse"))}


def test_rq_scheduler_is_loaded_where_it_is_used() -> None:
    """Workers, queues, commands and the page load nothing of rq-scheduler, which is there for schedules only."""
    code = (
        "import sys, rq_pooled, rq_pooled.flask, rq_pooled.cli.main as _; "
        "rq_pooled.Queue, rq_pooled.Worker; print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "rq_pooled.worker.worker" in done.stdout.split()
    assert not {name for name in done.stdout.split() if name.startswith(("rq_scheduler", "crontab"))}


def test_package_exports_ten_names_at_most() -> None:
    """The public surface stays small enough to be learnt in one sitting, and every name in it exists."""
    names = rq_pooled.__all__
    assert len(names) <= 10
    for name in names:
        assert hasattr(rq_pooled, name)
