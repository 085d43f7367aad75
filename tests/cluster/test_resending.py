"""What a connection remembers of a WATCH ends with the transaction."""

from __future__ import annotations

import pytest
from cluster import Cluster
from redis import Redis

from rq_pooled.store.keys import PREFIX

pytestmark = pytest.mark.timeout(120)


@pytest.mark.parametrize("end", ["EXEC", "UNWATCH"])
def test_after_a_watch_commands_are_sent_again(cluster: Cluster, cluster_client: Redis, end: str) -> None:
    """A connection that has watched, and watches no more, has what is refused sent again as any other."""
    key = f"{PREFIX}:watched"
    connection = cluster_client.connection_pool.get_connection()
    try:
        connection.send_command("WATCH", key)
        assert connection.read_response() == b"OK"
        if end == "EXEC":
            connection.send_packed_command(connection.pack_commands([("MULTI",), ("INCR", key), ("EXEC",)]))
            assert [connection.read_response() for _ in range(3)] == [b"OK", b"QUEUED", [1]]
        else:
            connection.send_command("UNWATCH")
            assert connection.read_response() == b"OK"
        cluster.move(PREFIX, cluster.other(cluster.owner(PREFIX)))
        connection.send_command("INCR", key)
        assert connection.read_response() == (2 if end == "EXEC" else 1)
    finally:
        cluster_client.connection_pool.release(connection)
