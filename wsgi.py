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
    # Mistakes of whoever operates it: one line says what to do; a traceback would bury it.
    log = logging.getLogger("gunicorn.error")
    if log.handlers:
        log.critical("%s", error)
    else:  # not under Gunicorn: whoever typed a command reads it
        sys.stderr.write(f"{error}\n")
    sys.exit(GUNICORN_APP_LOAD_ERROR)
