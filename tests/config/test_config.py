"""Settings: the table of defaults, where values come from, and refusals in words."""

from __future__ import annotations

import dataclasses
import pickle
import re
import time
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from redis.exceptions import ResponseError

from rq_pooled.config.secrets import message_of, scrub, scrub_url
from rq_pooled.config.settings import Settings
from rq_pooled.errors import ConfigurationError

SECRET = "s3cr3t"

#: The defaults as decided, written out once more.
DEFAULTS: dict[str, Any] = {
    "url": "redis://localhost:6379/0",
    "max_connections": 10,
    "pool_timeout": 20,
    "enqueue_deadline": 2,
    "breaker_delay": 1,
    "socket_timeout": 5,
    "socket_connect_timeout": 5,
    "block": 60,
    "keepalive_idle": 60,
    "keepalive_interval": 10,
    "keepalive_count": 3,
    "health_check_interval": 30,
    "max_idle": 300,
    "max_lifetime": 3600,
    "leak_warn": 60,
    "jobs_share": 1,
    "jobs_login": None,
    "reconnect_base": 0.1,
    "reconnect_cap": 3,
    "reconnect_attempts": 0,
    "concurrency": 1,
    "claim_ahead": 1,
    "max_jobs_per_horse": 1000,
    "max_horse_memory": None,
    "heartbeat_interval": 15,
    "heartbeat_ttl": 60,
    "abandon_after": 900,
    "stalled_interval": 30,
    "max_stalls": 3,
    "kill_grace": 10,
    "shutdown_timeout": None,
    "guard_warn": 0.8,
    "guard_stop": 0.95,
    "guard_interval": 15,
    "guard_wait": 60,
    "guard_maxclients": None,
    "budget": None,
    "budget_name": None,
    "sweep_ghosts": 1,
    "sweep_requeue": (),
    "sweep_requeue_times": 3,
    "sweep_requeue_delay": 60,
    "sweep_requeue_rate": 100,
    "sweep_bury_after": None,
    "sweep_purge_after": None,
    "sweep_keep": None,
    "sweep_dead_age": 2_592_000,
    "sweep_dead_count": 10_000,
    "preload": (),
    "app": None,
    "signing_keys": None,
    "signing_keys_file": None,
    "signing": None,
    "signing_unbound": 0,
    "allowed": (),
    "describe": None,
}


def test_defaults() -> None:
    """The defaults are those of the design, no more and no fewer settings exist, and they pass their own checks."""
    assert dataclasses.asdict(Settings()) == DEFAULTS
    assert dataclasses.asdict(Settings.load(environ={})) == DEFAULTS


def test_description_covers_every_setting() -> None:
    """Each setting describes itself in one line, with its environment names, for documentation and options."""
    described = {info.name: info for info in Settings.rows()}
    assert list(described) == list(DEFAULTS)
    for name, info in described.items():
        assert info.env[0] == f"RQ_POOLED_{name.upper()}" and info.default == DEFAULTS[name]
        assert info.description and "\n" not in info.description
        assert info.default is None or isinstance(info.default, info.type)
    assert described["url"].env == ("RQ_POOLED_URL", "RQ_REDIS_URL", "REDIS_URL")
    assert described["concurrency"].env == ("RQ_POOLED_CONCURRENCY", "QUEUE_CONCURRENCY")


def test_frozen_and_picklable() -> None:
    """Settings cannot change once they exist, and travel to other processes."""
    settings = Settings(concurrency=4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.concurrency = 5  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(settings)) == settings


def test_precedence() -> None:
    """An argument wins over the environment, that over the settings module, that over the default."""
    everywhere: dict[str, Any] = {
        "arguments": {"concurrency": 2, "block": None},
        "environ": {"RQ_POOLED_CONCURRENCY": "3", "RQ_POOLED_BLOCK": "7", "RQ_POOLED_MAX_IDLE": ""},
        "module": {"RQ_POOLED_CONCURRENCY": 4, "BLOCK": 8, "MAX_IDLE": 9, "REDIS_URL": "redis://module", "QUEUES": []},
    }
    settings = Settings.load(**everywhere)
    assert (settings.concurrency, settings.block, settings.max_idle) == (2, 7, 9)
    assert settings.url == "redis://module"
    everywhere["arguments"] = {}
    assert Settings.load(**everywhere).concurrency == 3
    everywhere["environ"] = {"QUEUE_CONCURRENCY": "5"}
    assert Settings.load(**everywhere).concurrency == 5
    everywhere["environ"] = {}
    assert Settings.load(**everywhere).concurrency == 4


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"REDIS_URL": "redis://a"}, "redis://a"),
        ({"REDIS_URL": "redis://a", "RQ_REDIS_URL": "redis://b"}, "redis://b"),
        ({"REDIS_URL": "redis://a", "RQ_REDIS_URL": "redis://b", "RQ_POOLED_URL": "redis://c"}, "redis://c"),
        ({"REDIS_URL": "redis://a", "RQ_POOLED_URL": ""}, "redis://a"),
    ],
)
def test_names_of_the_url(environ: dict[str, str], expected: str) -> None:
    """Of the variables that name the server the most particular wins, and an empty one counts as not set."""
    assert Settings.load(environ=environ).url == expected


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"REDIS_HOST": "h"}, "redis://h:6379/0"),
        ({"REDIS_HOST": "::1", "REDIS_PORT": "7", "REDIS_DB": "2"}, "redis://[::1]:7/2"),
        ({"REDIS_HOST": "h", "REDIS_PORT": "tcp://10.0.0.1:6380"}, "redis://h:6380/0"),
        ({"REDIS_HOST": "h", "REDIS_PASSWORD": "a@b:/"}, "redis://:a%40b%3A%2F@h:6379/0"),
        (
            {"REDIS_HOST": "h", "REDIS_SSL": "True", "REDIS_SSL_CERT_REQS": "none"},
            "rediss://h:6379/0?ssl_cert_reqs=none",
        ),
        ({"REDIS_HOST": "h", "REDIS_URL": "redis://u"}, "redis://u"),
        ({"REDIS_PORT": "tcp://10.0.0.1:6379", "SENTINEL": "1"}, "redis://localhost:6379/0"),
    ],
)
def test_server_of_redis_host(environ: dict[str, str], expected: str) -> None:
    """REDIS_HOST and its companions are read as RQ reads them, after every URL, from environment and module alike."""
    assert Settings.load(environ=environ).url == expected
    assert Settings.load(module=environ, environ={}).url == expected


@pytest.mark.parametrize("name", ["REDIS_HOST", "REDIS_PORT", "REDIS_DB", "REDIS_SSL"])
def test_bad_server_of_redis_host(name: str) -> None:
    """What cannot be used is named by its variable, without the password."""
    environ = {"REDIS_HOST": "h", "REDIS_PASSWORD": SECRET, name: f"a {SECRET}"}
    with pytest.raises(ConfigurationError, match=f"the environment variable {name} is ") as caught:
        Settings.load(environ=environ)
    assert SECRET not in str(caught.value)


def test_texts_are_converted() -> None:
    """What arrives as text from the environment has the type of its setting."""
    settings = Settings.load(
        environ={
            "RQ_POOLED_PRELOAD": "app.jobs, app.models,",
            "RQ_POOLED_MAX_HORSE_MEMORY": "none",
            "RQ_POOLED_SHUTDOWN_TIMEOUT": "2.5",
            "RQ_POOLED_BUDGET": "20",
            "RQ_POOLED_BUDGET_NAME": "shop",
            "RQ_POOLED_APP": "shop.web:create_app()",
        }
    )
    assert settings.preload == ("app.jobs", "app.models") and settings.max_horse_memory is None
    assert settings.shutdown_timeout == 2.5 and settings.budget == 20 and type(settings.budget) is int


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("concurrency", 0, "at least 1"),
        ("concurrency", "many", "whole number"),
        ("concurrency", "1.5", "whole number"),
        ("concurrency", True, "whole number"),
        ("max_connections", 2, "at least 3 and at most 100000 (2 for the roles"),
        ("pool_timeout", -1, "at least 0"),
        ("socket_timeout", 0, "above 0"),
        ("socket_timeout", "nan", "finite"),
        ("block", "inf", "finite"),
        ("max_stalls", "inf", "whole number"),
        ("kill_grace", -1, "at least 0"),
        ("heartbeat_ttl", 30, "HEARTBEAT_TTL (30) must be above twice HEARTBEAT_INTERVAL (15)"),
        ("heartbeat_interval", 31, "HEARTBEAT_INTERVAL is 31"),
        ("abandon_after", 50, "above HEARTBEAT_TTL"),
        ("abandon_after", 1e17, "at most 3155760000 (100 years)"),
        ("reconnect_cap", 1e300, "at most 3155760000 (100 years)"),
        ("guard_warn", 0.95, "GUARD_STOP (0.95) must be above GUARD_WARN (0.95)"),
        ("guard_stop", 1.1, "at most 1"),
        ("reconnect_cap", 0.05, "at least RECONNECT_BASE"),
        ("keepalive_count", 128, "at most 127"),
        ("budget_name", "my shop", "letters"),
        ("app", "shop", "module:app_or_factory"),
        ("preload", "no/path", "names of modules"),
        ("sweep_requeue", "no-name", "names of exceptions"),
        ("sweep_ghosts", "2", "at most 1"),
        ("sweep_purge_after", "7x", "a number"),
    ],
)
def test_refused_in_one_line(name: str, value: Any, words: str) -> None:
    """A bad value is refused with one line: the setting, the value, where it came from, what is allowed."""
    places: list[tuple[str, dict[str, Any]]] = [
        (f"the environment variable RQ_POOLED_{name.upper()}", {"environ": {f"RQ_POOLED_{name.upper()}": str(value)}}),
        (f"the argument {name}", {"arguments": {name: value}, "environ": {}}),
        (f"{name.upper()} in the settings module", {"module": {name.upper(): value}, "environ": {}}),
    ]
    for source, settings in places:
        with pytest.raises(ConfigurationError) as caught:
            Settings.load(**settings)
        message = str(caught.value)
        assert words in message and source in message and message.startswith(f"{name.upper()} is {value}")
        assert "\n" not in message and caught.value.exit_code == 2 and caught.value.__cause__ is None


def test_direct_construction_is_checked() -> None:
    """Settings that are built directly pass the same checks."""
    with pytest.raises(ConfigurationError, match="CONCURRENCY is 0"):
        Settings(concurrency=0)
    with pytest.raises(ConfigurationError, match="HEARTBEAT_INTERVAL is 31"):
        Settings(heartbeat_interval=31)
    with pytest.raises(ConfigurationError, match=r"URL is \*\*\* .* a text"):
        Settings(url=5)  # type: ignore[arg-type]


def test_unknown_argument() -> None:
    """A misspelled argument is refused and the right name suggested."""
    with pytest.raises(ConfigurationError, match="'concurency': did you mean 'concurrency'"):
        Settings.load({"concurency": 3})


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("localhost:6379", "no scheme"),
        (f":{SECRET}@localhost:6379", "no scheme"),
        (f"http://:{SECRET}@localhost", "unknown"),
        (f"sentinel://:{SECRET}@a,b", "does not name the service"),
        (f"sentinel://:{SECRET}@a,b//0", "does not name the service"),
        (f"sentinel://:{SECRET}@/mymaster", "hosts or ports is malformed"),
        (f"sentinel://:{SECRET}@a,,b/mymaster", "hosts or ports is malformed"),
        (f"sentinel://:{SECRET}@a:0/mymaster", "hosts or ports is malformed"),
        (f"sentinel://:{SECRET}@a:70000/mymaster", "hosts or ports is malformed"),
        (f"sentinel://:{SECRET}@a:b:c/mymaster", "hosts or ports is malformed"),
        (f"sentinel://:{SECRET}@a/mymaster/zero", "not a number"),
        (f"sentinel://:{SECRET}/x@a/mymaster", "hosts are malformed"),
        (f"sentinel://:{SECRET}@x@a/mymaster", "hosts are malformed"),
        (f"sentinel://:{SECRET}#x@a/mymaster", "'#'"),
        (f"sentinel://a/mymaster?sentinel_password={SECRET}&sentinel_tls=maybe", "neither yes nor no"),
        (f"sentinel://a/mymaster?password={SECRET}&sentinel_username=u", "without a sentinel_password"),
        (f"sentinel://a/mymaster?sentinel_password={SECRET}x@y{SECRET}&sentinel_tls=maybe", "neither yes nor no"),
        (f"rediss+sentinel://:{SECRET}@a, b/mymaster", "white space"),
        (f"rediss-sentinel://:{SECRET}@a/mymaster", "unknown"),
        (f"redis://:{SECRET}@localhost:port/0", "malformed"),
        (f"redis://:{SECRET}@localhost:70000", "malformed"),
        (f"redis://:{SECRET}/x@localhost", "malformed"),
        (f"redis://:{SECRET}#x@localhost", "'#'"),
        (f"redis://:{SECRET} x@localhost", "white space"),
        (f"redis://:{SECRET}@[::1", "malformed"),
        (f"redis://u%3A{SECRET}%40localhost:6379/0", "contains %40"),
        (f"redis://:{SECRET}@localhost/zero", "not a number"),
        (f"unix://:{SECRET}@", "no path"),
        ("", "no scheme"),
    ],
)
def test_bad_url(url: str, words: str) -> None:
    """A URL that cannot be used is refused in words, and its password appears neither there nor in a traceback."""
    with pytest.raises(ConfigurationError, match=re.escape(words)) as caught:
        Settings(url=url)
    assert SECRET not in str(caught.value) and caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize(
    "url",
    ["redis://", "redis://h", "redis://h:1/15", "rediss://u:p%2F@h/0?ssl_cert_reqs=none", "unix:///a/b.sock?db=2",
     "redis://[::1]:6379/0", "unix://user@/tmp/s?password=x", "sentinel://h/mymaster", "sentinel://h:1,h2/mymaster/",
     "sentinel://[::1]:1,h2/mymaster/3", "redis+sentinel://:p%40@h/m?sentinel_password=x", "rediss+sentinel://u:p@h/m/0"],
)  # fmt: skip
def test_good_url(url: str) -> None:
    """Every form of URL that redis-py reads is accepted."""
    assert Settings(url=url).url == url


def test_repr_has_no_password() -> None:
    """Settings in a log or traceback do not show the password."""
    assert SECRET not in repr(Settings(url=f"redis://:{SECRET}@h"))


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="'\""), min_size=8))
@example("pa@tail@end")
def test_scrub_removes_any_password(password: str) -> None:
    """Whatever characters a password has, no message about its URL contains it or a part of it."""
    assume(not re.search("(password|passwd|secret|token)=", password, re.IGNORECASE))  # then more is hidden
    url = f"redis://user:{password}@host:6379/0"
    assert scrub(f"cannot reach {url} now") == "cannot reach redis://***@host:6379/0 now"
    assert scrub_url(url) == "redis://***@host:6379/0"


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="'\"&"), min_size=8))
def test_scrub_removes_any_password_of_sentinels(password: str) -> None:
    """Whatever characters the sentinels' password has, no message about its URL contains it or the end of it."""
    assume(password not in "sentinel://***@h1,h2/mymaster/0?sentinel_password=***&ssl_cert_reqs=none")
    url = f"sentinel://:other-{SECRET}@h1,h2/mymaster/0?sentinel_password={password}&ssl_cert_reqs=none"
    for text in (scrub_url(url), scrub(f"cannot reach {url} now")):
        assert password not in text and f"{password[-4:]}&" not in text and SECRET not in text
        assert "&ssl_cert_reqs=none" in text


def test_scrub_removes_parameters() -> None:
    """Passwords given as parameters of a URL are scrubbed as well."""
    assert scrub_url(f"sentinel://h1,h2/m?sentinel_password={SECRET}") == "sentinel://h1,h2/m?sentinel_password=***"
    assert scrub("unix:///s?db=1&password=x&a=1") == "unix:///s?db=1&password=***&a=1"
    assert scrub_url("rediss://h?ssl_password=x") == "rediss://h?ssl_password=***"
    assert SECRET not in scrub(f"redis://h?PASSWORD={SECRET}")


@pytest.mark.parametrize("between", ["'", '"', " ", "\t", "&", "&&", "@", "://", "#"])
def test_scrub_removes_a_parameter_that_is_not_encoded(between: str) -> None:
    """Of one URL a password parameter is hidden to its end, whatever stands in it and was not encoded."""
    url = f"redis://h:6379/0?password=first{between}{SECRET}&db=1"
    assert SECRET not in scrub_url(url) and "first" not in scrub_url(url) and scrub_url(url).endswith("&db=1")


@pytest.mark.parametrize("url", [{"host": "h", "password": SECRET}, ("redis", SECRET), SECRET.encode(), 6379])
def test_a_url_that_is_no_text_is_not_shown(url: Any) -> None:
    """Of a dictionary, or anything else that is given for a URL, the message shows nothing."""
    with pytest.raises(ConfigurationError, match=r"URL is \*\*\*") as caught:
        Settings(url=url)
    assert SECRET not in str(caught.value)


def test_what_is_no_scheme_is_not_shown() -> None:
    """A password at the beginning of a malformed URL is not taken for its scheme, by the error neither."""
    for url in (f":{SECRET}://x@h/0", f"redis:/u:{SECRET}://@h/0"):
        with pytest.raises(ConfigurationError) as caught:
            Settings(url=url)
        assert SECRET not in str(caught.value) and SECRET not in scrub_url(url)


@pytest.mark.parametrize("rest", ["", "/0", "/x/0", ":6379/0", "#x", "?db=1", f"?{SECRET}"])
@pytest.mark.parametrize("scheme", ["redis", "rediss", "sentinel", "redis+sentinel"])
def test_scrub_hides_a_password_whose_at_was_forgotten(scheme: str, rest: str) -> None:
    """A URL whose password stands where the port belongs shows nothing of it, in a text and alone."""
    url = f"{scheme}://:{SECRET}{rest}"
    assert SECRET not in scrub_url(url) and SECRET not in scrub(f"cannot reach {url}, or 'x={url}'")
    with pytest.raises(ConfigurationError) as caught:
        Settings(url=url)
    assert SECRET not in str(caught.value)
    assert "123456789" not in scrub_url(f"{scheme}://:123456789{rest}")
    assert SECRET not in scrub(f"to {scheme}://u%3A{SECRET}%40host:6379{rest}")


@pytest.mark.parametrize(
    "url",
    [
        "redis://host:6379/0",
        "redis://[::1]:6379/0",
        "redis://:6379",
        "sentinel://h1:1,h2:2/mymaster/0",
        "unix:///a:b/c",
    ],
)
def test_scrub_leaves_what_is_no_secret(url: str) -> None:
    """An address without a login is shown as it is, and so are the forms that our messages recommend."""
    assert scrub_url(url) == url and scrub(f"to {url} now") == f"to {url} now"
    assert (
        scrub("write redis://host:port/db, or unix:///path?db=0") == "write redis://host:port/db, or unix:///path?db=0"
    )


@pytest.mark.parametrize(
    "text", ["a", "a://", "?password=", "&password=", "a://?token=&", "redis://:x@h/0", "@", "x=", "[", ":"]
)
def test_scrub_takes_time_in_proportion(text: str) -> None:
    """A long text, whoever wrote it, costs milliseconds: 200 kB took up to 25 seconds."""
    long = text * (200_000 // len(text))
    began = time.perf_counter()
    scrub(long)
    scrub_url(long)
    assert time.perf_counter() - began < 1.5


def test_what_an_error_says_is_one_line_without_passwords() -> None:
    """The words of an error, which a server or a user may have written, bring neither line breaks nor passwords to a
    log.
    """
    error = ResponseError("WRONGPASS\r\nfor redis://shop:s3cr3t@host:6379/0?password=0ther")
    assert message_of(error) == "WRONGPASS for redis://***@host:6379/0?password=***"


def test_seconds_may_be_written_as_durations() -> None:
    """A setting in seconds takes what commands take, such as 1m30s; a number stays a number, and a count is none."""
    found = Settings.load(environ={"RQ_POOLED_MAX_IDLE": "1m30s", "RQ_POOLED_SWEEP_BURY_AFTER": "2d"})
    assert (found.max_idle, found.sweep_bury_after) == (90, 172_800)
    assert Settings.load({"pool_timeout": "1m"}, environ={}).pool_timeout == 60
    for name in ("CONCURRENCY", "GUARD_WARN"):
        with pytest.raises(ConfigurationError, match="number"):
            Settings.load(environ={f"RQ_POOLED_{name}": "1m"})
