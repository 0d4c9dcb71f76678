"""The HTTP application: health, then the fast lane, then Django (as WSGI, in a pool of threads)."""

import os

from a2wsgi import WSGIMiddleware

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "syros_project.settings")

from api.lane import Lane
from syros_project.wsgi import application as django

THREADS = 6  # each keeps a connection

application = Lane(WSGIMiddleware(django, workers=THREADS))  # type: ignore[arg-type]
