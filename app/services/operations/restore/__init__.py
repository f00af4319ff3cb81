"""Restores: a backup takes the place of the present stores."""
