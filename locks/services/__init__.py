"""The lock operations, by what they are about. Importing this declares them all."""

from locks.services import deadlocks, elections, fences, holds, looking, upkeep

__all__ = ["deadlocks", "elections", "fences", "holds", "looking", "upkeep"]
