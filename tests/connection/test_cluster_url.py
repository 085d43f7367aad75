"""URLs of a cluster: what they may hold, and how they are shown."""

from __future__ import annotations

import pytest
from commands import PASSWORD

from rq_pooled.config import Settings
from rq_pooled.config.cluster_url import parse_cluster_url
from rq_pooled.connection.url_parameters import url_options
from rq_pooled.errors import ConfigurationError


def test_the_parts_of_a_url() -> None:
    """Hosts and login are told apart, decoded once; clusters:// speaks TLS."""
    url = f"cluster://us%3Aer:{PASSWORD}%40@h1:7000,[::1],h3/?socket_timeout=2"
    assert parse_cluster_url(url).nodes == (("h1", 7000), ("::1", 6379), ("h3", 6379))
    options = url_options(Settings(url=url))
    assert (options["username"], options["password"], options["socket_timeout"]) == ("us:er", f"{PASSWORD}@", 2)
    assert "connection_class" not in options
    assert "SSL" in url_options(Settings(url="clusters://h"))["connection_class"].__name__


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (f"cluster://:{PASSWORD}@h1:7000,h2:x/", "malformed"),
        (f"cluster://:{PASSWORD}@h1/2", "a cluster has no database 2: leave out what follows the hosts"),
        (f"cluster://:{PASSWORD}@h1/mymaster", "its path is no part of it"),
        (f"cluster://:{PASSWORD}@h1/?db=3", "leave out the parameter db"),
    ],
)
def test_a_bad_url_is_refused_in_words(url: str, words: str) -> None:
    """A URL that cannot be used is refused at once, in words that show the form and no password."""
    with pytest.raises(ConfigurationError) as refused:
        Settings(url=url)
    assert words in str(refused.value) and "cluster://host1:6379,host2:6379/" in str(refused.value)
    assert PASSWORD not in str(refused.value)


@pytest.mark.parametrize("end", ["", "/", "/0"])
def test_the_one_database(end: str) -> None:
    """The database that every cluster has may be named."""
    assert parse_cluster_url(f"cluster://h:1{end}").nodes == (("h", 1),)
