"""The keys in Redis have one module that names them, for Python as for the scripts."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import rq_pooled
from rq_pooled.store import keys
from rq_pooled.store.scripts import KEYS, scripts

PACKAGE = Path(rq_pooled.__file__).parent
PREFIXES = ("rq_pooled:", "rq:")
#: What names none: fields of a job's meta, and a text that is encoded to try an encoding.
EXEMPT = {"retry/attempts.py", "retry/backoff.py", "connection/url_parameters.py", "signing/job.py"}
#: Who may know the prefix itself: RQ's seam and what refuses it; above the store, messages, names of connections, and
#: the slot of all keys.
KNOW_THE_PREFIX = {
    *("__main__.py", "rq_api.py", "rq_version.py", "store/keys.py"),
    *("connection/away.py", "connection/names.py", "connection/options.py", "connection/resending.py"),
}
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
LUA = sorted(path.relative_to(PACKAGE).as_posix() for path in (PACKAGE / "store" / "lua").rglob("*.lua"))
#: Fields of a job's hash, which scripts read and write as the modules do.
FIELDS = {"rq_pooled:requeues", "rq_pooled:retry", "rq_pooled:signature"}
#: What a script is given by the server, the loader, or the standard library of Lua.
GIVEN = {"KEYS", "ARGV", "RQ3", "LOG_WARNING", "QUESTIONS", "COMMANDS", "NOW_AND_THEN"}
STRING = re.compile("\"[^\"]*\"|'[^']*'")
CALL = re.compile(r"\bstring\.(match|find|gmatch|gsub|sub)\(")


def literals(path: str) -> list[str]:
    """Return the literals of a module that begin as a key does, those in f-strings among them."""
    found = []
    for node in ast.walk(ast.parse((PACKAGE / path).read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes)):
            value = node.value if isinstance(node.value, str) else node.value.decode(errors="replace")
            if value.startswith(PREFIXES):
                found.append(f"{path}:{node.lineno}: {value}")
    return found


def offsets(source: str) -> list[str]:
    """Return the slices of a module that cut a key at a number."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Slice) and "key" in ast.unparse(node.value):
            bounds = [node.slice.lower, node.slice.upper]
            found += [ast.unparse(node) for bound in bounds if bound is not None and ast.unparse(bound).isdigit()]
    return found


def code_of(path: str) -> str:
    """Return a script without its comments."""
    return re.sub("--.*", "", (PACKAGE / path).read_text())


def arguments(code: str, start: int) -> list[str]:
    """Return the arguments of the call whose first one starts here."""
    found, depth, quoted = [""], 0, False
    for letter in code[start:]:
        quoted ^= letter == "'"
        depth += 0 if quoted else (letter in "({[") - (letter in ")}]")
        if depth < 0:
            break
        if letter == "," and not depth and not quoted:
            found.append("")
        else:
            found[-1] += letter
    return [one.strip() for one in found]


def faults(code: str) -> list[str]:
    """Return what in a script names a key by itself: literals, numbers that cut, patterns that are put together."""
    found = [
        one for one in STRING.findall(code) if re.search(r"\brq(_pooled)?:\w", one) and one.strip("'") not in FIELDS
    ]
    for call in CALL.finditer(code):
        words = arguments(code, call.end())
        whole = f"string.{call[1]}({', '.join(words)})"
        if call[1] == "sub":
            found += [whole] if any(re.fullmatch(r"-?\d+", word) and word != "1" for word in words[1:]) else []
        elif words[2:] != ["1", "true"]:
            found += [] if re.fullmatch("'[^']*'", words[1]) and "rq" not in words[1] else [whole]
    return found


@pytest.mark.parametrize("path", sorted({*MODULES} - EXEMPT - {"store/keys.py"}))
def test_only_one_module_writes_keys(path: str) -> None:
    """A key is named by store/keys.py, so that all that stands in Redis is found in one place."""
    assert literals(path) == [] and offsets((PACKAGE / path).read_text()) == []


@pytest.mark.parametrize("path", sorted(EXEMPT))
def test_what_is_exempt_has_a_reason_still(path: str) -> None:
    """A module that writes no such literal any more is not exempt."""
    assert literals(path) != []


def test_only_one_module_builds_keys_from_the_prefix() -> None:
    """No other module puts a key together from the prefix, which would be a literal in disguise."""
    names = re.compile(
        r"\bkey_prefix\b|\bRQ_KEY_PREFIX\b|\bkeys\.(PREFIX|OURS)\b|keys import (?:\([^)]*|[^\n(]*)\b(PREFIX|OURS)\b"
    )
    assert {path for path in MODULES if names.search((PACKAGE / path).read_text())} == KNOW_THE_PREFIX


@pytest.mark.parametrize("path", LUA)
def test_scripts_name_keys_as_the_module_does(path: str) -> None:
    """A script has no key, no length of a key and no pattern of a key of its own: each would ignore the prefix."""
    assert faults(code_of(path)) == []


@pytest.mark.parametrize(
    "code",
    [
        "redis.call('GET', 'rq:job:' .. id)",
        "redis.log(1, 'the key rq_pooled:limits')",
        "local name = string.sub(key, 10)",
        "local name = string.sub(key, 1, -8)",
        "string.match(key, '^rq:execution:(.*)$')",
        "string.find(key, '^' .. JOB)",
        "string.gsub(f(key, 2), QUEUE, '')",
    ],
)
def test_faults_of_scripts_are_found(code: str) -> None:
    """The test above sees each way in which a script can name a key by itself."""
    assert faults(code)


@pytest.mark.parametrize("path", LUA)
def test_scripts_use_only_names_that_exist(path: str) -> None:
    """Each upper-case name is the script's own or one of the module's, never both: Lua takes a missing one for nil."""
    code = STRING.sub("''", code_of(path))
    own = set(re.findall(r"\b[A-Z][A-Z0-9_]+\b", " ".join(re.findall(r"\blocal ([\w, ]+)=", code))))
    included = "".join(re.findall("^-- include (.+)\n", (PACKAGE / path).read_text(), re.MULTILINE))
    # Commands as names of a table's entries are none.
    used = set(re.findall(r"\b[A-Z][A-Z0-9_]+\b(?! = )", code))
    assert not own & KEYS.keys()
    missing = used - own - KEYS.keys() - GIVEN
    assert not missing or (included and missing <= {"LARGE", "LARGE_VALUE"}), missing


def test_every_key_that_scripts_know_has_the_prefix() -> None:
    """What the loader puts into a script begins as ours or as RQ's, and needs no escape in Lua."""
    assert all(one.startswith((f"{keys.PREFIX}:", f"{keys.OURS}:")) for one in KEYS.values())
    assert not any(set(one) & set("'\\\n") for one in KEYS.values())
    names = "JOB, NONE" if "{" in keys.PREFIX else "JOB"
    assert f"local {names} = '{keys.JOB}'" in scripts()["reads"].text


def test_all_keys_are_ours_or_rqs() -> None:
    """Every name in store/keys.py begins as ours or as RQ's, so that other data in the database is left alone."""
    functions = [value for name, value in vars(keys).items() if name.endswith(("_key", "_keys", "_channel"))]
    named = [function(*["x"] * function.__code__.co_argcount) for function in functions]
    flat = [one for value in [*KEYS.values(), *named] for one in ([value] if isinstance(value, str) else value)]
    assert len(flat) > 40 and all(one.startswith((f"{keys.PREFIX}:", f"{keys.OURS}:")) for one in flat)


def test_a_pattern_of_scan_matches_its_text_only() -> None:
    """Letters that mean something in a pattern of SCAN are escaped."""
    assert keys.literal("a[b]*?^\\{x}") == "a\\[b\\]\\*\\?\\^\\\\{x}"
