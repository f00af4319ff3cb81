"""What both stores' Alembic environments do: migrate on the connection that the caller locked."""

from alembic import context


def run() -> None:
    """Runs the migrations inside the caller's transaction."""
    attributes = context.config.attributes
    context.configure(
        connection=attributes["connection"],
        target_metadata=attributes["target_metadata"],
        version_table=attributes["version_table"],
        render_as_batch=True,
        transactional_ddl=True,
    )
    context.run_migrations()
