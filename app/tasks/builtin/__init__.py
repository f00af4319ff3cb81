"""The tasks that the product brings itself.

They stand on the repositories and the services, so nothing but the registry imports them, by name, when an
app is built.
"""
