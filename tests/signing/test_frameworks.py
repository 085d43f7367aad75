"""A signed queue under django-rq and under flask-rq: both take our queue class, and jobs of it verify."""

from __future__ import annotations

import textwrap

import pytest
from commands import run
from keys import named
from signing_scene import Signing

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
