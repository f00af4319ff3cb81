"""HTTP clients of the stack: one that logs in as a person does, one that holds a script's token.

They never retry: an answer that a retry would hide is what the tests are after.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import requests
from requests.adapters import HTTPAdapter

SCHEDULER = "/api/v1/scheduler"
WRITES = frozenset({"POST", "PUT", "PATCH", "DELETE"})


class Client:
    """A `requests` session with the stack's address in front of every path."""

    def __init__(self, base_url: str, *, token: str | None = None, timeout: float = 60.0) -> None:
        self.base_url = base_url
        self.timeout = timeout
        self.session = requests.Session()
        # An ambient proxy or .netrc of the host must not reach these calls.
        self.session.trust_env = False
        # Tests ask from many threads at once; the default keeps ten connections.
        self.session.mount("http://", HTTPAdapter(pool_maxsize=64))
        self.csrf_token: str | None = None
        if token is not None:
            self.session.headers["Authorization"] = f"Bearer {token}"

    def request(self, method: str, path: str, **options: Any) -> requests.Response:
        """One call; `options` are those of `requests`. Redirects are not followed unless asked for."""
        headers = dict(options.pop("headers", None) or {})
        if method in WRITES and self.csrf_token is not None:
            headers.setdefault("X-CSRFToken", self.csrf_token)
        options.setdefault("timeout", self.timeout)
        options.setdefault("allow_redirects", False)
        return self.session.request(method, self.base_url + path, headers=headers, **options)

    def get(self, path: str, **options: Any) -> requests.Response:
        return self.request("GET", path, **options)

    def post(self, path: str, **options: Any) -> requests.Response:
        return self.request("POST", path, **options)

    def put(self, path: str, **options: Any) -> requests.Response:
        return self.request("PUT", path, **options)

    def delete(self, path: str, **options: Any) -> requests.Response:
        return self.request("DELETE", path, **options)

    def data(self, method: str, path: str, *, status: int = 200, **options: Any) -> Any:
        """`data` of a success envelope; fails with the whole answer when it is anything else."""
        answer = self.request(method, path, **options)
        assert answer.status_code == status, f"{method} {path}: {answer.status_code} {answer.text[:2000]}"
        body = answer.json()
        assert body["success"] is True, body
        return body.get("data")

    def fetch_csrf_token(self) -> str:
        self.csrf_token = str(self.data("GET", "/api/v1/auth/csrf-token")["csrf_token"])
        return self.csrf_token

    def log_in(self, username: str, password: str) -> None:
        """Log in and take the CSRF token that belongs to the new session."""
        self.fetch_csrf_token()
        self.data("POST", "/api/v1/auth/login", json={"username": username, "password": password})
        self.fetch_csrf_token()

    # -- the scheduler API, in the words of the tests ---------------------------------------------------

    def jobs(self) -> list[dict[str, Any]]:
        jobs: list[dict[str, Any]] = self.data("GET", f"{SCHEDULER}/jobs")
        return jobs

    def job(self, job_id: str) -> dict[str, Any]:
        job: dict[str, Any] = self.data("GET", f"{SCHEDULER}/jobs/{job_id}")
        return job

    def create_job(self, job_id: str, task: str, trigger: dict[str, Any], **fields: Any) -> dict[str, Any]:
        """Create an own job; `trigger` holds `trigger_type` and the fields that go with it."""
        body = {"id": job_id, "task": task, **trigger, **fields}
        job: dict[str, Any] = self.data("POST", f"{SCHEDULER}/jobs", json=body, status=201)
        return job

    def delete_job(self, job_id: str) -> None:
        self.data("DELETE", f"{SCHEDULER}/jobs/{job_id}")

    def run_now(self, job_id: str) -> dict[str, Any]:
        """Start a manual run; `manual_job_id` and `run_id`."""
        started: dict[str, Any] = self.data("POST", f"{SCHEDULER}/jobs/{job_id}/actions/run")
        return started

    def history(self, job_id: str) -> list[dict[str, Any]]:
        """Every recorded run of the job, newest first, over all pages."""
        return list(self._pages(f"{SCHEDULER}/jobs/{job_id}/history"))

    def _pages(self, path: str) -> Iterator[dict[str, Any]]:
        cursor: str | None = None
        while True:
            params = {"limit": "500"} | ({"cursor": cursor} if cursor else {})
            answer = self.get(path, params=params)
            assert answer.status_code == 200, f"GET {path}: {answer.status_code} {answer.text[:2000]}"
            body = answer.json()
            yield from body["data"]
            cursor = (body.get("meta") or {}).get("next_cursor")
            if not cursor:
                return
