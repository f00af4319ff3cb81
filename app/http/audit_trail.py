"""Writes every change that somebody makes through the API, and every login, to the audit log."""

from __future__ import annotations

import structlog
from flask import Flask, Response, g, request
from sqlalchemy.exc import SQLAlchemyError

from app.api.v1.csrf import WRITING_METHODS
from app.runtime import current_runtime
from app.services.accounts import current_principal
from app.services.accounts.audit_service import record_audit

log = structlog.get_logger(__name__)


def init_audit_trail(app: Flask) -> None:
    """Record the writing requests of this app, whatever they were answered."""
    app.after_request(_record)


def audit_as(actor: str) -> None:
    """Name the actor of this request, where nobody is logged in yet."""
    g.audit_actor = actor


def audit_action(action: str) -> None:
    """Name what this request does, where its endpoint may do any of several things."""
    g.audit_action = action


def _record(response: Response) -> Response:
    if request.method not in WRITING_METHODS or request.endpoint is None:
        return response
    if response.status_code == 429:  # or a flood of refused logins would fill the log
        return response
    try:
        actor = g.get("audit_actor") or getattr(current_principal(), "name", "")
        if actor:
            record_audit(
                current_runtime().database,
                actor=actor,
                action=g.get("audit_action") or request.endpoint,
                target=request.path,
                status=response.status_code,
                address=request.remote_addr or "",
                request_id=g.get("request_id", ""),
            )
    except SQLAlchemyError:
        # The change itself is done and on record; an answer that says otherwise would be worse.
        log.exception("audit line not written", action=request.endpoint, target=request.path)
    return response
