"""The settings of that project."""

import os

SECRET_KEY = "x"
USE_TZ = True
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
INSTALLED_APPS = ["django_rq"]
RQ_QUEUES = {"default": {"URL": os.environ["SHOP_SERVER"]}}
