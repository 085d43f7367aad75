"""The scripts as files: what their headers say is what they take, and any server can run them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from engine import engine
from keys import named
from redis import Redis
from redis.exceptions import NoScriptError, ResponseError
from rq import Queue

import rq_pooled
from rq_pooled.config import Settings
from rq_pooled.store import (
    budget,
    claim,
    commit,
    enqueue,
    failed,
    leases,
    limits,
    locks,
    queues,
    repair,
    rq_scheduler,
    scheduled,
    sentries,
    statistics,
    workers,
)
from rq_pooled.store.keys import NONE, budget_keys, claims_key, leases_key
from rq_pooled.store.scripts import load, needed, rights, run, run_script, scripts
from rq_pooled.wire import Command

LOCK = locks.SweepLock(named("rq_pooled:sweep:q"), "", 30)
FILES = sorted((Path(rq_pooled.__file__).parent / "store" / "lua").glob("*.lua"))
assert FILES
#: SCAN and ZSCAN are allowed: one page each.
FORBIDDEN = {
    *("KEYS", "FLUSHALL", "FLUSHDB", "SORT", "RANDOMKEY", "SPOP", "SMEMBERS"),
    *("BLPOP", "BRPOP", "BLMOVE", "BRPOPLPUSH", "BLMPOP", "BZPOPMIN", "BZPOPMAX", "BZMPOP", "WAIT"),
    *("WATCH", "MULTI", "EXEC", "DISCARD", "SUBSCRIBE", "PSUBSCRIBE", "MONITOR", "DEBUG", "CONFIG", "SAVE"),
}


def split(path: Path) -> tuple[str, str]:
    """The header of a script, and its code without comments."""
    lines = path.read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if not line.startswith("--"))
    return "\n".join(lines[:first]), "\n".join(re.sub(r"--.*", "", line) for line in lines[first:])


def calls() -> dict[str, tuple[Command, int]]:
    """An EVALSHA of every script, and how many keys it has to name."""
    ours = Settings()
    return {
        "admit": (workers.admit("t", True, 30), 1),
        "aside": (commit.set_aside("a:b", "q", 9, [("f", b"v")]), 2),
        "budget": (budget.reserve(budget_keys("shop"), "t", 1, 2, 1, 20, 60, 6, ["u"]), 4),
        "claim": (
            claim.claim_jobs(ours, "t", [named("rq:queue:a"), named("rq:queue:b")], "default", ["w"])[0],
            2,
        ),
        "commit": (commit.commit_outcomes("t", []), 0),
        "doze": (sentries.Post.of(["a"], "w").doze(0, 1.5), 2),
        "enqueue": (
            enqueue.enqueue_jobs(
                named("rq:queue:a"), 0, False, "k", "u", 1.0, "now", [("j", True, None, ["data", b""], ("", 0))]
            ),
            1,
        ),
        "forget": (enqueue.forget(named("rq:job:j"), "now"), 1),
        "enqueue_many": (enqueue.enqueue_many(named("rq:queue:a"), [("j", True, 9, ["data", b""])]), 2),
        "enqueue_new": (enqueue.enqueue_new(named("rq:job:j"), named("rq:queue:a"), "j", True, 9, ["data", b""]), 3),
        "executions": (repair.remove_executions("0", 10, "t", 10), 0),
        "ghosts": (repair.remove_ghosts(named("rq:failed:a"), "0", 10, "t", 10), 1),
        "groups": (repair.clean_groups(b"0"), 0),
        "heartbeat": (leases.heartbeat(ours, "t", 480, [], []), 0),
        "intermediate": (repair.rescue_intermediate([named("rq:queue:a")], 20), 1),
        "limit": (limits.change_limit("a", "operator", "1 1000000 0"), 2),
        "move": (
            rq_scheduler.move_job(named("rq:queue:a"), ("t", 9), "j", 1.0, None, False, None, [], ["data", b""]),
            3,
        ),
        "postpone": (leases.postpone([named("rq:queue:a")], 900), 1),
        "promote": (scheduled.promote(["a", "b"], "name", {"name": "name"}), 2),
        "publish": (statistics.publish("a", 60, {"name": "value"}), 1),
        "push_back": (leases.push_back(ours, "t", []), 0),
        "ready": (repair.queue_ready([named("rq:queue:a")], 20, "now"), 1),
        "reads": (commit.guarded_reads([]), 0),
        "register": (workers.register_workers(480, False, ("", 0), [], []), 0),
        "rescue": (repair.rescue_jobs(True, []), 0),
        "rights": (rights(), 1),
        "sample": (statistics.note_clients(1, 10, 15), 1),
        "scheduler_due": (rq_scheduler.scheduler_due("t", 60), 2),
        "stalled": (leases.find_stalled(ours, "t", [named("rq:queue:a")], "w", 9e9), 1),
        "failed_bury": (failed.failed_bury("r", LOCK, "d", 60, [("a", "any")]), 3),
        "failed_ghosts": (failed.failed_ghosts("r", LOCK, 0, 10, False), 2),
        "failed_look": (failed.failed_look(["a"], 10, 10), 0),
        "queue_states": (queues.queue_states(["a"], 10), 0),
        "served_queues": (queues.served_queues(), 0),
        "failed_page": (failed.failed_page("r", LOCK, ("", 0, ""), 10, 10, True), 2),
        "failed_purge": (failed.failed_purge("r", LOCK, [("a", "any")]), 2),
        "failed_requeue": (failed.failed_requeue("r", LOCK, "now", b"", 1, False, 1, "q", 1, [("a", "any", "")]), 2),
        "unlock": (locks.unlock(named("rq:scheduler_lock"), "t"), 1),
        "unregister": (workers.unregister_workers("now", "name", [], []), 0),
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_header_says_what_the_script_takes(path: Path) -> None:
    """Every file has a header that says what it does, its keys, each numbered argument that it uses, and its reply."""
    header, code = split(path)
    assert re.match(r"-- [A-Z].{20,}", header)
    assert re.search(r"^-- returns +\S", header, re.MULTILINE)
    keys = re.search(r"^-- KEYS(\S*) +(\w+)", header, re.MULTILINE)
    assert keys is not None
    assert ("KEYS" in code) == (keys[2] != "none"), "a script that declares no keys uses none, and the other way round"

    single = {int(number) for number in re.findall(r"ARGV\[(\d+)\]", header)}
    rest = [int(number) for number in re.findall(r"ARGV\[(\d+)\.\.\]", header)]
    used = {int(number) for number in re.findall(r"ARGV\[(\d+)\]", code)}
    assert used <= single, f"not in the header: {sorted(used - single)}"
    assert single <= used, f"not used: {sorted(single - used)}"
    if rest:
        assert single == set(range(1, rest[0])), "the numbers before the rest leave no gap"
        assert re.search(rf"\b{rest[0]}\b", code), "the rest is read from the number that the header gives"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_runs_on_every_server(path: Path) -> None:
    """No shebang (6.2 knows none), nothing that looks at the whole key space, nothing that blocks, no globals."""
    _, code = split(path)
    assert not path.read_text().startswith("#!")
    commands = set(re.findall(r"redis\.p?call\(\s*'(\w+)'", code))
    assert commands or "unpack" in code
    assert not commands & FORBIDDEN
    assert commands == {command.upper() for command in commands}
    assert not re.search(r"^\s*(?!local\b)[a-z_]+ = (?=\{|function)", code, re.MULTILINE)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_function_is_defined_before_it_is_called(path: Path) -> None:
    """Lua looks a name up when the line runs: a shared function that is taken in too late ends the script half-way."""
    defined = {"pcall", "pairs", "ipairs", "unpack", "next", "tonumber", "tostring", "type"}
    defined |= {"and", "or", "not", "if", "elseif", "in", "return", "function", "while", "until"}
    for line in scripts()[path.stem].text.splitlines():
        code = re.sub(r"'[^']*'", "''", re.sub(r"--.*", "", line))
        for names in re.findall(r"\b(?:local function|local|for|function)\b\s*\(?([\w, ]+)", code):
            defined |= set(re.findall(r"\w+", names))
        called = set(re.findall(r"(?<![\w.:])([A-Za-z_]\w*)\s*\(", code))
        assert called <= defined, line


def test_every_file_has_a_function_and_names_its_keys(redis: Redis, server: Any) -> None:
    """Each file is called by one function of the store, with as many declared keys as its header says, and runs."""
    assert sorted(calls()) == [path.stem for path in FILES]
    with engine(server.url) as ours:
        for name, (command, keys) in calls().items():
            # Without a key a cluster would not know where it belongs.
            assert command[2:4] == (1, NONE) if keys == 0 else command[2] == keys, name
            ours.run(command)


def test_every_file_is_called_in_one_place() -> None:
    """One line of the store names a script, so that its keys and words are put together by one function."""
    store = Path(rq_pooled.__file__).parent / "store"
    text = "".join(path.read_text() for path in store.glob("*.py"))
    assert sorted(re.findall(r'\bcall\(\s*"(\w+)"', text)) == [path.stem for path in FILES]


def test_survive_script_flush(redis: Redis, server: Any) -> None:
    """After SCRIPT FLUSH the next call loads all scripts again and gets its reply, with others around it unharmed."""
    queue = Queue(connection=redis)
    queue.enqueue("math.factorial", 3, job_id="a")
    with engine(server.url) as ours:
        redis.script_flush()
        command, request = claim.claim_jobs(ours.settings, ours.token, [queue.key], "default", ["w"])
        replies = ours.command.execute([("PING",), command, ("ECHO", "x")])
        assert replies[0] == b"PONG" and replies[2] == b"x"
        assert [one.job_id for one in request.read(replies[1]).claims] == ["a"]
        assert redis.script_exists(*[command[1] for command, _ in calls().values()]) == [True] * len(FILES)


def test_a_client_loads_the_one_script_that_the_server_lacks(redis: Redis) -> None:
    """Where code can wait, a call that the server does not know is done once, whatever error the client makes of it."""
    command = limits.change_limit("q", "operator", "1 1000000 0")
    redis.script_flush()
    sent: list[Any] = []

    def send(words: Command) -> Any:
        sent.append(words[0])
        try:
            return redis.execute_command(*words)
        except NoScriptError as error:
            # As a horse hears it from its parent.
            raise ResponseError(f"NOSCRIPT {error}") from None

    assert run(send, command) == run_script(redis, command)
    assert sent == ["EVALSHA", "SCRIPT", "EVALSHA"]
    assert redis.script_exists(*(script.sha1 for script in scripts().values())).count(True) == 1
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        redis.set(named("rq_pooled:stats:samples"), "a text")
        run(send, statistics.note_clients(1, 10, 15))
    assert sent[3:] == ["EVALSHA", "SCRIPT", "EVALSHA"], "another error is not taken for an unknown script"


def test_one_module_knows_what_an_unknown_script_is() -> None:
    """The cure for NOSCRIPT stands in one place, so that no caller lacks a part of it."""
    package = Path(rq_pooled.__file__).parent
    knowing = {path for path in package.rglob("*.py") if "NoScriptError" in path.read_text()}
    assert knowing == {package / "store" / "scripts.py"}


def test_own_keys_have_one_prefix() -> None:
    """Whatever is ours begins with rq_pooled:, and with the prefix where one is set."""
    assert claims_key("t") == named("rq_pooled:claims:t") and leases_key("q") == named("rq_pooled:leases:q")


def test_rights_asks_for_every_command_of_a_workers_scripts() -> None:
    """A command that a worker's script begins to use is asked for at the start, whatever its arguments are called."""
    # PUBLISH, which is only tried; ASIDE, what errors begin with, and EVALSHA, a word that an outcome holds: the
    # script runs what it names itself.
    options = {"PUBLISH", "ASIDE", "MAXLEN", "LIMIT", "WITHSCORES", "WRONGTYPE", "EVALSHA"}
    for name in ("admit", "aside", "claim", "commit", "heartbeat", "promote", "push_back", "register", "stalled"):
        used = set(re.findall(r"'([A-Z]{3,})'", scripts()[name].text)) - options
        assert used <= set(needed()), name


def load_all(redis: Redis) -> None:
    """Have the server know all scripts."""
    for command in load():
        redis.execute_command(*command)


def test_rights_tells_what_is_refused_and_changes_nothing(redis: Redis, server: Any) -> None:
    """Each command that the user may not run is named, no other is, and no key stays."""
    load_all(redis)
    for command in needed():
        redis.execute_command("ACL", "SETUSER", "app", "reset", "on", ">pw", "~*", "+@all", f"-{command}")
        with Redis(server.host, server.port, username="app", password="pw") as client:
            refused = client.execute_command(*rights())
            assert [word.decode() for word in refused[::2]] == [command]
    redis.execute_command("ACL", "DELUSER", "app")
    assert redis.execute_command(*rights()) == [] and not redis.keys("*")
