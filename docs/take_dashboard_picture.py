#!/usr/bin/env python3
"""Takes docs/dashboard.png, the README's picture, of a running deployment.

    python docs/take_dashboard_picture.py --address http://127.0.0.1 --password-file .secrets/admin_password

Needs Debian's chromium and the packages of the `test` extra. The picture is as good as what has run there lately.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

PICTURE = Path(__file__).parent / "dashboard.png"
WIDTH, HEIGHT = 1280, 1180
LARGEST_BYTES = 200_000  # the README is also read over slow lines


def take(address: str, password: str, target: Path) -> int:
    """Logs in as admin and writes the upper part of the English dashboard to `target`; its size in bytes."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        context = browser.new_context(
            base_url=address, locale="en-US", color_scheme="light", viewport={"width": WIDTH, "height": HEIGHT}
        )
        credentials = {"username": "admin", "password": password}
        answer = context.request.post("/api/v1/auth/login", data=credentials)
        if not answer.ok:
            sys.exit(f"{address} refused the login of admin: HTTP {answer.status}")
        page = context.new_page()
        page.goto("/dashboard")
        page.wait_for_load_state("networkidle")
        picture = page.screenshot()
        browser.close()
    if len(picture) > LARGEST_BYTES:
        sys.exit(f"the picture has {len(picture)} bytes; accepted: at most {LARGEST_BYTES}. Nothing was written.")
    target.write_bytes(picture)
    return len(picture)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--address", default="http://127.0.0.1", help="of the deployment (%(default)s)")
    parser.add_argument("--password-file", type=Path, default=Path(".secrets/admin_password"))
    parser.add_argument("--output", type=Path, default=PICTURE)
    given = parser.parse_args()
    size = take(given.address, given.password_file.read_text().strip(), given.output)
    sys.stdout.write(f"{given.output}: {size} bytes\n")


if __name__ == "__main__":
    main()
