"""Locks, elections and sessions, for people: who holds what, who waits, and what happened to it.

Never the lock_id: it is the holder's secret.
"""

from locks.admin import elections, front, sessions  # noqa: F401  registers their pages
from locks.admin.locks import LockAdmin

__all__ = ["LockAdmin"]
