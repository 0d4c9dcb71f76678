"""Sagas for people: what each did and when, what is stuck, and what can be done about it."""

from sagas.admin import definitions, front, schedules, tasks  # noqa: F401  registers their pages
from sagas.admin.attention import AttentionAdmin
from sagas.admin.sagas import SagaAdmin

__all__ = ["AttentionAdmin", "SagaAdmin"]
