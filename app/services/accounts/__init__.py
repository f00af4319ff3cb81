"""Accounts: who is asking, logging in, the admin of the secret, the audit log."""

from app.services.accounts.principal import Permission, Principal, current_principal

__all__ = ["Permission", "Principal", "current_principal"]
