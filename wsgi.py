"""What Gunicorn serves: `wsgi:application`. ENABLE_SCHEDULER tells the web process from the scheduler's."""

from __future__ import annotations

import logging
import sys

from app import create_app
from app.db.engines import DamagedDatabase
from app.db.migrate import NewerSchema
from app.db.reach import StoreUnusable
from app.default_jobs import DefaultJobsError
from app.settings import SettingsError

GUNICORN_APP_LOAD_ERROR = 4  # makes Gunicorn's master give up at once instead of starting workers over and over

try:
    application = create_app()
except (SettingsError, DefaultJobsError, DamagedDatabase, NewerSchema, StoreUnusable) as error:
    # Mistakes of whoever operates it: one line says what to do; a traceback would bury it. Gunicorn's own log is set up
    # already; under `flask`, which has none, this goes to standard error as it is.
    logging.getLogger("gunicorn.error").critical("%s", error)
    sys.exit(GUNICORN_APP_LOAD_ERROR)
