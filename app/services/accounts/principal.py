"""Who is asking, and what they may do."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast

from flask import g

Permission = Literal["view", "admin"]

PERMISSIONS_OF_ROLE: dict[str, frozenset[Permission]] = {
    "view": frozenset({"view"}),
    "admin": frozenset({"view", "admin"}),
}
TOKEN_NAME = "api-token"  # noqa: S105 - the name that the ledger records for the token's holder


@dataclass(frozen=True)
class Principal:
    """Somebody who is known: a logged-in user, or the holder of the API token (user_id None)."""

    user_id: int | None
    name: str
    permissions: frozenset[Permission]

    def may(self, permission: Permission) -> bool:
        """Whether this permission is held."""
        return permission in self.permissions

    @property
    def created_by(self) -> str:
        """How the ledger names them: the user's id, or the token's name."""
        return self.name if self.user_id is None else str(self.user_id)


def identify_with(identify: Callable[[], Principal | None]) -> None:
    """Say how to find out who is asking, once somebody wants to know; called by the edge for each request."""
    g.pop("principal", None)
    g.identify = identify


def current_principal() -> Principal | None:
    """Who is asking; None for nobody known, and outside a request."""
    if "principal" not in g:
        identify = cast("Callable[[], Principal | None] | None", g.get("identify"))
        g.principal = identify() if identify else None
    return cast("Principal | None", g.principal)


def token_principal(given: str, api_token: str) -> Principal | None:
    """The holder of the API token, when `given` is it. Takes as long for any wrong token."""
    # Digests have one length, so that the comparison does not tell the token's.
    same = hmac.compare_digest(
        hashlib.sha256(given.encode("utf-8", "surrogatepass")).digest(),
        hashlib.sha256(api_token.encode("utf-8", "surrogatepass")).digest(),
    )
    return Principal(None, TOKEN_NAME, PERMISSIONS_OF_ROLE["admin"]) if same else None
