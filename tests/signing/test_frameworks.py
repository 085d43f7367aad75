"""A signed queue under django-rq and under flask-rq: both take our queue class, and jobs of it verify."""

from __future__ import annotations

import pickle
import textwrap

import pytest
import signed_jobs
from commands import run
from keys import named
from signing_scene import Signing

from rq_pooled import Queue

DJANGO = """
    import django.conf, os, urllib.parse
    url = urllib.parse.urlparse(os.environ["URL"])
    django.conf.settings.configure(
        INSTALLED_APPS=["django_rq"],
        RQ_QUEUES={"default": {"HOST": url.hostname, "PORT": url.port, "DB": 0}},
        RQ={"QUEUE_CLASS": "rq_pooled.Queue"},
    )
    django.setup()
    import django_rq, signed_jobs
    django_rq.get_queue("default").enqueue(signed_jobs.note, "django", job_id="a")
"""
FLASK = """
    import os, flask, flask_rq, rq_pooled, signed_jobs
    app = flask.Flask("app")
    app.config["RQ_CONNECTION"] = os.environ["URL"]
    rq = flask_rq.RQ(app)
    with app.app_context():
        theirs = rq.queue
        rq.queues["default"] = rq_pooled.Queue("default", theirs.connection, job_class=theirs.job_class)
        rq.queue.enqueue(signed_jobs.note, "flask", job_id="a")
"""
OURS = """
    import os, flask, rq_pooled.flask, signed_jobs
    keys = os.environ.pop("RQ_POOLED_SIGNING_KEYS")
    app = flask.Flask("app")
    app.config.update(RQ_POOLED_URL=os.environ["URL"], RQ_POOLED_SIGNING_KEYS=keys)
    rq = rq_pooled.flask.RQPooled(app)
    with app.app_context():
        rq.queue.enqueue(signed_jobs.note, "ours", job_id="a")
"""


@pytest.mark.parametrize(("name", "program"), [("django", DJANGO), ("flask", FLASK), ("ours", OURS)])
def test_signed_queues(signing: Signing, name: str, program: str) -> None:
    """A job that a framework enqueues through rq_pooled.Queue is signed, and runs where signatures are required."""
    result = run(["-c", textwrap.dedent(program)], URL=signing.server.url)
    assert result.returncode == 0, result.stderr
    assert signing.redis.hexists(named("rq:job:a"), "rq_pooled:signature")
    signing.work()
    assert signing.ran == [name]


VIEWED = """
    import os, urllib.parse, warnings, django
    from django.conf import settings
    url = urllib.parse.urlparse(os.environ["URL"])
    contrib = [f"django.contrib.{name}" for name in ("admin", "auth", "contenttypes", "sessions", "messages")]
    behind = ("sessions.middleware.Session", "auth.middleware.Authentication", "messages.middleware.Message")
    context = ["django.template.context_processors.request", "django.contrib.auth.context_processors.auth",
               "django.contrib.messages.context_processors.messages"]
    settings.configure(
        INSTALLED_APPS=[*contrib, "django_rq"], SECRET_KEY="x", ROOT_URLCONF="__main__", STATIC_URL="/static/",
        ALLOWED_HOSTS=["testserver"],
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
        MIDDLEWARE=[f"django.contrib.{name}Middleware" for name in behind],
        TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True,
                    "OPTIONS": {"context_processors": context}}],
        RQ_QUEUES={"default": {"HOST": url.hostname, "PORT": url.port, "DB": 0}},
        RQ={"QUEUE_CLASS": "rq_pooled.Queue"},
    )
    django.setup()
    from django.contrib import admin
    from django.contrib.auth.models import User
    from django.core.management import call_command
    from django.test import Client
    from django.urls import include, path
    urlpatterns = [path("admin/", admin.site.urls), path("rq/", include("django_rq.urls"))]
    call_command("migrate", verbosity=0)
    client = Client()
    client.force_login(User.objects.create_superuser("boss"))
    for page in ("finished/", "failed/", "good/", "evil/"):
        answer = client.get("/rq/queues/0/" + page, follow=True)
        assert answer.status_code == 200, (page, answer.status_code)
        print(page, ("good" if page == "finished/" else "evil" if page == "failed/" else "signed_jobs.note")
              in answer.content.decode())
    assert client.post("/rq/queues/0/evil/requeue/", follow=True).status_code == 200
"""


def test_a_signed_queue_viewed(signing: Signing) -> None:
    """The pages of django-rq show signed jobs of our queue class, and load nothing of those that were forged; one that
    is requeued there is refused again."""
    queue = Queue("default", connection=signing.redis)
    for job_id in ("good", "evil"):
        queue.enqueue(signed_jobs.note, job_id, job_id=job_id, meta={"a": 1})
    signing.redis.hset(named("rq:job:evil"), "meta", pickle.dumps(signed_jobs.Evil()))
    signing.work()
    assert signing.refused("evil")
    result = run(["-c", textwrap.dedent(VIEWED)], URL=signing.server.url, EVIL_URL=signing.server.url)
    assert result.returncode == 0, result.stderr
    assert [line.split()[1] for line in result.stdout.splitlines()[:3]] == ["True"] * 3, result.stdout
    signing.work()
    assert signing.ran == ["good"] and signing.refused("evil")
