"""`python3 -m app.cli.support_bundle`: masks what scripts/doctor.sh gathered, and adds what the app knows.

A tar on standard input, a tar.gz on standard output. No `flask` command, for the reason of app/cli/doctor.py.
"""

from __future__ import annotations

import sys

from app.services.operations.support.bundle import write_bundle

if __name__ == "__main__":
    write_bundle(sys.stdin.buffer, sys.stdout.buffer)
