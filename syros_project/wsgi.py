"""Django as WSGI: what the fast lane does not take. Served through a thread pool, which costs a third of
what Django's ASGI handler costs."""

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "syros_project.settings")
application = get_wsgi_application()
