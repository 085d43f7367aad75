"""The page in Django: a view that hands the request to the page's WSGI application, for staff only.

    python examples/django_page.py runserver 127.0.0.1:8000

Take ``page`` and its line in ``urlpatterns`` into your project; the settings here only make the file run alone.
"""

from __future__ import annotations

import os
import secrets
import sys
from typing import Any

import django
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.urls import re_path
from django.views.decorators.csrf import csrf_exempt
from werkzeug.test import run_wsgi_app

if not settings.configured:
    settings.configure(
        SECRET_KEY=os.environ.get("SECRET_KEY") or secrets.token_hex(),
        ROOT_URLCONF=__name__,
        ALLOWED_HOSTS=["127.0.0.1", "localhost"],
        MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
    )
    django.setup()

from rq_pooled.flask import page_app

PREFIX = "/rq"


def may(request: HttpRequest) -> str | None:
    """Return "write" for those who may change something, "read" for those who may look, None for all others."""
    user = getattr(request, "user", None)
    if user is not None:
        return "write" if user.is_superuser else "read" if user.is_staff else None
    # Without Django's users, as in this file: the header of a proxy that has logged the visitor in.
    token = os.environ.get("STATUS_TOKEN")
    return "write" if token and secrets.compare_digest(request.headers.get("X-Status-Token", ""), token) else None


def authorize() -> str | None:
    """Answer the page's question with what the view below has found out."""
    import flask

    return flask.request.environ.get("rq_pooled.may")


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


urlpatterns = [re_path(r"^rq/.*$", page)]

if __name__ == "__main__":
    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)
