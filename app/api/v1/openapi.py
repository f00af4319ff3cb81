"""The description of the API: OpenAPI 3.1 at /api/v1/openapi.json, made of the routes themselves."""

from __future__ import annotations

import re
from typing import Any

from apiflask import APIFlask

from app.api.v1.auth import PERMISSION_ATTRIBUTE, Credentials
from app.api.v1.csrf import HEADER as CSRF_HEADER
from app.api.v1.csrf import WRITING_METHODS
from app.api.v1.repeats import REPEATABLE_ATTRIBUTE, describe_header

LOGIN_PATH = "/api/v1/auth/login"
SPEC_PATH = "/api/v1/openapi.json"

_SECURITY_SCHEMES = {
    "session": {"type": "apiKey", "in": "cookie", "name": "session"},
    "csrf": {"type": "apiKey", "in": "header", "name": CSRF_HEADER},
    "bearer": {"type": "http", "scheme": "bearer"},
}
_SUCCESS = {
    "type": "object",
    "required": ["success", "error", "message", "timestamp"],
    "properties": {
        "success": {"const": True},
        "error": {"const": False},
        "message": {"type": "string"},
        "timestamp": {"type": "string", "format": "date-time"},
        "data": {},
        "meta": {"type": "object"},
    },
}
_ERROR = {
    "type": "object",
    "required": ["success", "error", "message", "message_code", "timestamp", "request_id"],
    "properties": {
        "success": {"const": False},
        "error": {"const": True},
        "message": {"type": "string", "description": "for people, in the language of Accept-Language"},
        "message_code": {"type": "string", "description": "for programs, never translated"},
        "timestamp": {"type": "string", "format": "date-time"},
        "request_id": {"type": "string"},
        "context": {"type": "object"},
    },
}


def init_openapi(app: APIFlask) -> None:
    """Complete the description with what holds for every route: the envelope, and the two ways in."""
    app.config["SECURITY_SCHEMES"] = _SECURITY_SCHEMES
    app.config["AUTO_VALIDATION_ERROR_RESPONSE"] = False
    app.config["AUTO_404_RESPONSE"] = False
    app.config["VALIDATION_ERROR_STATUS_CODE"] = 400
    app.config["DESCRIPTION"] = (
        "Every answer is an envelope. Two ways in: a session with the header X-CSRFToken on writes, or a bearer token."
    )

    @app.spec_processor
    def complete(spec: dict[str, Any] | str) -> dict[str, Any] | str:
        if isinstance(spec, str):  # only YAML is, which is not served
            return spec
        views = _views(app)
        schemas = spec.setdefault("components", {}).setdefault("schemas", {})
        schemas |= {"Success": _SUCCESS, "Error": _ERROR}
        for path, methods in list(spec.get("paths", {}).items()):
            if not path.startswith("/api/"):
                del spec["paths"][path]  # pages are for people
                continue
            for method, operation in methods.items():
                if isinstance(operation, dict) and "responses" in operation:
                    _complete_operation(operation, method.upper(), views.get((path, method.upper())))
                    if path == LOGIN_PATH:
                        # Declared as input it would also be taken as text/plain, which foreign pages can send.
                        schema = Credentials.model_json_schema()
                        operation["requestBody"] = {
                            "required": True,
                            "content": {"application/json": {"schema": schema}},
                        }
        return spec


def _views(app: APIFlask) -> dict[tuple[str, str], object]:
    return {
        (re.sub(r"<(?:[^<>:]*:)?([^<>]+)>", r"{\1}", rule.rule), method): app.view_functions[rule.endpoint]
        for rule in app.url_map.iter_rules()
        for method in rule.methods or ()
    }


def _complete_operation(operation: dict[str, Any], method: str, view: object) -> None:
    answers = operation["responses"]
    for status, answer in answers.items():
        name = "Success" if str(status).startswith("2") else "Error"
        answer.setdefault("content", {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}})
        if answer["content"].get("application/json", {}).get("schema") == {}:
            answer["content"]["application/json"]["schema"] = {"$ref": f"#/components/schemas/{name}"}
    answers.setdefault(
        "default",
        {
            "description": "The error envelope",
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
        },
    )
    if getattr(view, REPEATABLE_ATTRIBUTE, False):
        describe_header(operation)
    permission = getattr(view, PERMISSION_ATTRIBUTE, None)
    if permission is not None:
        session = ("session", "csrf") if method in WRITING_METHODS else ("session",)
        operation["security"] = [{name: [] for name in session}, {"bearer": []}]
        operation["x-permission"] = permission
