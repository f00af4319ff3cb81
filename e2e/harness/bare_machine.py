"""A machine without containers: commands and processes of the app run from this tree, with stores of the test's own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from e2e.harness.scripts import Outcome
from e2e.harness.stack import ROOT

API_TOKEN = "token of the tests"
ADMIN_PASSWORD = "correct horse battery"
SECRET_KEY = "secret key of the tests"
#: What a Gunicorn worker does, without serving.
START = "import wsgi"


class BareMachine:
    """Its userdata, and where its stores are: below it, or both in the database of that URL."""

    def __init__(self, userdata: Path, store: str = "", **environment: str) -> None:
        self.userdata = userdata
        self.environment = {
            **os.environ,
            "SECRET_KEY": SECRET_KEY,
            "ADMIN_PASSWORD": ADMIN_PASSWORD,
            "API_TOKEN": API_TOKEN,
            "USERDATA_DIR": str(userdata),
            "JOBSTORE_URL": store,
            "DATABASE_URL": store,
            "FLASK_APP": "wsgi",
            **environment,
        }

    def python(self, *arguments: str, within: float = 60, **environment: str) -> Outcome:
        """Run Python with these arguments; `within`: seconds."""
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=within,
            check=False,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    def flask_jobs(self, *arguments: str, **environment: str) -> Outcome:
        """`flask jobs ...`."""
        return self.python("-m", "flask", "jobs", *arguments, within=120, **environment)

    def start(self, *, within: float = 60, **environment: str) -> Outcome:
        """What Gunicorn does to start a process, without serving."""
        return self.python("-c", START, within=within, **environment)
