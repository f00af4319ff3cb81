"""What Gunicorn serves: `wsgi:application`. ENABLE_SCHEDULER tells the web process from the scheduler's."""

from __future__ import annotations

import sys

from app import create_app
from app.settings import SettingsError

GUNICORN_APP_LOAD_ERROR = (
    4  # makes Gunicorn's master give up at once instead of starting the worker over and over
)

try:
    application = create_app()
except SettingsError as error:
    sys.stderr.write(f"{error}\n")
    sys.exit(GUNICORN_APP_LOAD_ERROR)
