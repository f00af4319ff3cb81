"""The API, version 1: one module a resource; each parses, calls a service and answers the envelope."""
