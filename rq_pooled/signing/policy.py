"""What this process signs, verifies and allows. One policy per process, since a serializer is told nothing."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache

from ..config.settings import PREFIX, Settings
from ..errors import ConfigurationError, NotVerified
from .keys import Keys, parse_keys, read_keys

#: The settings from which a policy is made.
NAMES = ("signing_keys", "signing_keys_file", "signing", "signing_unbound", "allowed")


@dataclass(frozen=True)
class Policy:
    """What is signed, verified and allowed."""

    keys: Keys | None = None
    #: Load jobs that are not signed, too.
    unsigned: bool = False
    #: Load jobs that a SignedSerializer signed alone, too.
    unbound: bool = False
    allowed: tuple[str, ...] = ()

    @property
    def checks(self) -> bool:
        """Tell whether jobs are looked at before they are loaded."""
        return self.keys is not None or bool(self.allowed)

    @property
    def mode(self) -> str:
        """What becomes of jobs without a signature, as SIGNING says it; "" where there are no keys."""
        return "" if self.keys is None else "accept-unsigned" if self.unsigned else "require"

    def check_allowed(self, name: str, what: str = "the job calls") -> None:
        """Raise unless a function may be called.

        Raises:
            NotVerified: no entry of ALLOWED names it.
        """
        if self.allowed and not _pattern(self.allowed).fullmatch(name):
            raise NotVerified(f"{what} {name[:200]!r}, which ALLOWED does not name")


_current: Policy | None = None


@cache
def _pattern(allowed: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(r"\.".join(map(_of_name, entry.split("."))) for entry in allowed))


def _of_name(name: str) -> str:
    """Return the pattern of one name of an entry.

    A star is one name: RQ would follow "shop.tasks.os.system" into modules that shop.tasks imports. It is none of
    Python's own: "shop.tasks.__setattr__" replaces what is called next.
    """
    return "(?!__)" + r"\w+".join(map(re.escape, name.split("*"))) if "*" in name else re.escape(name)


def current() -> Policy:
    """Return the policy of this process, from the environment unless ``use`` was called.

    Raises:
        ConfigurationError: a key cannot be used.
    """
    global _current
    if _current is None:
        wanted = any(PREFIX + name.upper() in os.environ for name in NAMES)
        _current = policy_of(Settings.load()) if wanted else Policy()
    return _current


def use(policy: Policy | None) -> None:
    """Have this process sign and verify by this policy; None forgets it."""
    global _current
    _current = policy


def sign_by(settings: Settings, given: Collection[str]) -> None:
    """Have this process sign by the settings of one of its applications, if that one says anything about it.

    Args:
        settings: its settings.
        given: names with our prefix that it sets itself.

    Raises:
        ConfigurationError: another application of this process signs with other keys.
    """
    if not any(PREFIX + name.upper() in given for name in NAMES):
        return
    wanted = policy_of(settings)
    if _current is not None and _current.keys is not None and _current != wanted:
        raise ConfigurationError(
            "SIGNING_KEYS of this application differ from those that this process uses already: use one set of keys "
            "per process"
        )
    use(wanted)


def policy_of(settings: Settings) -> Policy:
    """Return the policy that settings ask for.

    Raises:
        ConfigurationError: a key cannot be used, or there is none where signatures are asked for.
    """
    text, path = settings.signing_keys, settings.signing_keys_file
    if text is not None and path is not None:
        raise ConfigurationError("SIGNING_KEYS and SIGNING_KEYS_FILE are both set: leave one out")
    for name in ("SIGNING_KEYS", "SIGNING_KEYS_FILE"):
        # An empty variable counts as not set, and a secret that did not arrive must not switch signing off.
        if text is None and path is None and os.environ.get(PREFIX + name) == "":
            raise ConfigurationError(f"{PREFIX}{name} is empty: remove it to sign nothing, or give keys")
    keys = parse_keys(text, "SIGNING_KEYS") if text is not None else read_keys(path) if path is not None else None
    if keys is None and (settings.signing is not None or settings.signing_unbound):
        name = "SIGNING" if settings.signing is not None else "SIGNING_UNBOUND"
        raise ConfigurationError(f"{name} is set and there are no keys: set SIGNING_KEYS or SIGNING_KEYS_FILE")
    return Policy(keys, settings.signing == "accept-unsigned", bool(settings.signing_unbound), settings.allowed)
