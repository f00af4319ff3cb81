"""The release this code belongs to; `pyproject.toml` reads it from here."""

VERSION = "0.1.0"
