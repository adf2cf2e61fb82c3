"""Prefect's server, with one thing mended where its database is SQLite.

    python -m flows.prefect_server --host 127.0.0.1 --port 4200

It takes what `prefect server start` takes. Prefect begins most transactions as DEFERRED: one that
has read, and then writes after another wrote, fails at once as "database is locked", whatever time
it was given to wait (https://www.sqlite.org/isolation.html). Automations count their events in such
transactions: news of runs was lost, and now and then the whole server stood still for a minute,
when collecting the garbage of such an error waited for a connection that waited for the lock. A
transaction that takes the lock at its start waits its turn instead.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from prefect.cli import app
from prefect.server.database.configurations import AioSqliteConfiguration
from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction

_begin = AioSqliteConfiguration.begin_transaction


@asynccontextmanager
async def _begin_with_the_lock(
    self: AioSqliteConfiguration, session: AsyncSession, with_for_update: bool = False
) -> AsyncGenerator[AsyncSessionTransaction, None]:
    """Begin a transaction as IMMEDIATE, asked to or not."""
    del with_for_update
    async with _begin(self, session, with_for_update=True) as transaction:
        yield transaction


if __name__ == "__main__":
    AioSqliteConfiguration.begin_transaction = _begin_with_the_lock  # type: ignore[method-assign]
    sys.argv[:1] = ["prefect", "server", "start"]
    app()
