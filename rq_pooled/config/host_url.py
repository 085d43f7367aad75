"""Makes a URL of REDIS_HOST and its related variables, by which RQ also finds a server.

So workers, commands, queues and web pages find the same server.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

#: RQ's names for parameters of TLS, and redis-py's.
_TLS = {
    "REDIS_SSL_CA_CERTS": "ssl_ca_certs",
    "REDIS_SSL_CA_DATA": "ssl_ca_data",
    "REDIS_SSL_CERT_REQS": "ssl_cert_reqs",
    "REDIS_SSL_CERTFILE": "ssl_certfile",
    "REDIS_SSL_KEYFILE": "ssl_keyfile",
}
_YES, _NO = ("y", "yes", "t", "true", "1"), ("n", "no", "f", "false", "0", "none", "")


def url_of_host(source: Mapping[str, Any]) -> str | None:
    """Return the URL of the server that REDIS_HOST names, None if it is not set.

    Kubernetes sets REDIS_PORT to ``tcp://10.0.0.1:6379`` if a service is called redis; the port is then 6379.

    Raises:
        ValueError: a variable cannot be used; the text names it, and shows no password.
    """
    host = str(source.get("REDIS_HOST") or "").strip()
    if not host:
        return None
    if not re.fullmatch(r"[\w.-]+|[0-9A-Fa-f:.]+", host):
        raise ValueError("REDIS_HOST is not the name or address of a host: write only that, or set RQ_POOLED_URL")
    port = re.sub(r"^tcp://[^/]*:", "", str(source.get("REDIS_PORT") or 6379).strip())
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError("REDIS_PORT is not a port: write a number up to 65535")
    db = str(source.get("REDIS_DB") or 0).strip()
    if not (db.isascii() and db.isdigit()):
        raise ValueError("REDIS_DB is not the number of a database: write a number such as 0")
    tls = str(source.get("REDIS_SSL") or "").strip().lower()
    if tls not in (*_YES, *_NO):
        raise ValueError("REDIS_SSL is neither true nor false: write one of them")
    password = str(source.get("REDIS_PASSWORD") or "")
    login = f":{quote(password, safe='')}@" if password else ""
    found = {ours: source[name] for name, ours in _TLS.items() if source.get(name)} if tls in _YES else {}
    address = f"[{host}]" if ":" in host else host
    query = "?" + urlencode(found) if found else ""
    return f"{'rediss' if tls in _YES else 'redis'}://{login}{address}:{port}/{db}{query}"
