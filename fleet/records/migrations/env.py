"""What Alembic runs its revisions by: in the transaction of who asks for them."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
with context.begin_transaction():
    context.run_migrations()
