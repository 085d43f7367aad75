"""The page in Django: a view that hands the request to the page's WSGI application, for staff only.

    STATUS_TOKEN=… python examples/django_page.py runserver 127.0.0.1:8000

Copy what stands between "From here" and "To here" into your project; the rest makes this file run alone.
"""

from __future__ import annotations

# From here: your page.py.
from typing import Any

import flask
from django.http import HttpRequest, HttpResponse
from django.views.decorators.csrf import csrf_exempt
from werkzeug.test import run_wsgi_app

from rq_pooled.flask import page_app

PREFIX = "/rq"
EVERYTHING = frozenset({"view", "requeue", "bury", "purge", "stop", "pause"})


def may(request: HttpRequest) -> frozenset[str]:
    """Return what a visitor may do: staff may look, superusers may do everything. They may do so with every queue."""
    # Django's AuthenticationMiddleware makes it.
    user: Any = request.user
    if user.is_superuser:
        return EVERYTHING
    return frozenset({"view"}) if user.is_staff else frozenset()


def authorize(action: str, queue: str | None) -> bool:
    """Answer the page's question with what the view below has found out."""
    return action in flask.request.environ["rq_pooled.may"]


wsgi = page_app(authorize)


# The page refuses a form of another site by itself.
@csrf_exempt  # type: ignore[untyped-decorator]
def page(request: Any) -> HttpResponse:
    """Hand a request to the page."""
    environ = {**request.environ, "SCRIPT_NAME": PREFIX, "rq_pooled.may": may(request)}
    environ["PATH_INFO"] = request.environ["PATH_INFO"].removeprefix(PREFIX)
    body, status, headers = run_wsgi_app(wsgi.wsgi_app, environ)
    response = HttpResponse(b"".join(body), status=int(status.split()[0]))
    for name, value in headers.items():
        response[name] = value
    return response


# To here. In your urls.py: urlpatterns += [re_path(r"^rq/.*$", page)]
import os
import secrets
import sys
from collections.abc import Callable
from types import SimpleNamespace

from django.conf import settings
from django.core.management import execute_from_command_line
from django.urls import re_path

urlpatterns = [re_path(r"^rq/.*$", page)]


def by_token(get_response: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Make a superuser of a visitor with the token: this file has no users, as behind a proxy that logs visitors in."""

    def middleware(request: Any) -> Any:
        token = os.environ.get("STATUS_TOKEN")
        known = bool(token) and secrets.compare_digest(request.headers.get("X-Status-Token", ""), token or "")
        request.user = SimpleNamespace(is_superuser=known, is_staff=known)
        return get_response(request)

    return middleware


if __name__ == "__main__":
    settings.configure(
        SECRET_KEY=os.environ.get("SECRET_KEY") or secrets.token_hex(),
        ROOT_URLCONF=__name__,
        ALLOWED_HOSTS=["127.0.0.1", "localhost"],
        MIDDLEWARE=["django.middleware.common.CommonMiddleware", f"{__name__}.by_token"],
    )
    execute_from_command_line(sys.argv)
