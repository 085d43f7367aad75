"""The page as an application of its own: for ``rq-pooled web``, and to be mounted in Django, FastAPI and others."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Iterable, Mapping
from typing import Any

from flask import Flask, Response, abort, redirect, request, session

from ..config.settings import PREFIX
from .extension import RQPooled
from .rights import Authorize, Who

#: What a browser is told where it has to log in.
_LOGIN = {"WWW-Authenticate": 'Basic realm="rq_pooled", charset="UTF-8"'}


def page_app(authorize: Authorize | None, *, who: Who | None = None, **settings: Any) -> Flask:
    """Return a WSGI application that is the page, at its root; connects nowhere.

    Args:
        authorize, who: as for ``RQPooled.blueprint``. The request's environ is ``flask.request.environ``.
        settings: such as ``url="redis://…"``; those not given come from the environment.

    Raises:
        ConfigurationError: a setting cannot be used.
    """
    app = Flask("rq_pooled.page", static_folder=None)
    app.config.update({f"{PREFIX}{name.upper()}": value for name, value in settings.items() if value is not None})
    app.register_blueprint(RQPooled(app).blueprint(authorize, who=who), alone=True)
    return app


def guarded_app(credentials: Mapping[str, str], token: str, hosts: Iterable[str], may: str, **settings: Any) -> Flask:
    """Return the page behind a login of its own, for the hosts under which it may be called.

    Args:
        credentials: user -> password, asked for as HTTP Basic; without any the token is the way in.
        token: accepted once per browser at ``/enter?token=``, which sets a cookie for this process's life.
        hosts: names that the header Host may have; another one is a page elsewhere that was led here.
        may: ``"read"`` or ``"write"``.
        settings: as above.
    """
    app = page_app(
        lambda: may if _is_known(credentials) else abort(_refused(bool(credentials))),
        who=lambda: request.authorization.username if credentials and request.authorization else "token",
        **settings,
    )
    # Cookies end with the process, and go to no other site.
    app.secret_key = secrets.token_bytes(32)
    app.config.update(SESSION_COOKIE_NAME="rq_pooled", SESSION_COOKIE_SAMESITE="Strict", SESSION_COOKIE_HTTPONLY=True)
    allowed = {name.lower() for name in hosts}

    @app.before_request
    def check_host() -> None:
        name = request.host.lower()
        name = name[: name.index("]") + 1] if name.startswith("[") and "]" in name else name.partition(":")[0]
        if name not in allowed:
            abort(400, "this host is not served here: name it with --allow-host")

    @app.get("/enter")
    def enter() -> Any:
        given = request.args.get("token", "")
        if credentials or not hmac.compare_digest(given.encode(), token.encode()):
            abort(403, "this token is not (or no longer) valid: the terminal shows the address")
        session["known"] = True
        return redirect("/", 303)

    return app


def _is_known(credentials: Mapping[str, str]) -> bool:
    if not credentials:
        return session.get("known") is True
    try:
        given = request.authorization
    except ValueError:
        # The header is not ASCII, which werkzeug does not expect.
        given = None
    if given is None or given.type != "basic":
        return False
    # An unknown user costs as much time as a wrong password.
    expected = credentials.get(given.username or "", secrets.token_hex(16))
    return hmac.compare_digest((given.password or "").encode(), expected.encode())


def _refused(by_password: bool) -> Response:
    text = "Log in." if by_password else "Open the address with the token that the terminal shows."
    code, headers = (401, _LOGIN) if by_password else (403, None)
    return Response(f"{text}\n", code, headers, content_type="text/plain; charset=utf-8")
