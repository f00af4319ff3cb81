"""The support archive, and how secrets are kept out of it."""
