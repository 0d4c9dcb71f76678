"""What every serving process clears away or looks up again now and then; that several do it at once hurts nothing."""

from django.conf import settings

from core.callers import namespaces
from core.database import rows
from core.runtime import every

AT_ONCE = 1000  # rows a statement, so that none is long
OLD_ANSWERS = """delete from core_answer where id in (
    select id from core_answer where created_at < statement_timestamp() - %s * interval '1 hour' limit %s
    for update skip locked) returning id"""
# A claim of a process that is not listed counts as one of a process that is gone.
DEAD_PROCESSES = """delete from core_process where expires_at < statement_timestamp() - interval '1 hour'
    returning id"""
ENDED_SESSIONS = """delete from core_session where id in (
    select id from core_session where ended_at < statement_timestamp() - interval '10 minutes' limit %s
    for update skip locked) returning id"""


@every(60)
async def forget_answers() -> None:
    """Kept answers older than SYROS_IDEMPOTENCY_HOURS."""
    while len(await rows(OLD_ANSWERS, [settings.IDEMPOTENCY_HOURS, AT_ONCE])) == AT_ONCE:
        pass


@every(600)
async def forget_processes() -> None:
    await rows(DEAD_PROCESSES)


@every(60)
async def forget_sessions() -> None:
    while len(await rows(ENDED_SESSIONS, [AT_ONCE])) == AT_ONCE:
        pass


@every(3)
async def look_at_namespaces() -> None:
    """What was set of a namespace while this process heard nothing."""
    await namespaces.refresh()
