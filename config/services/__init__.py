"""The configuration operations, by what they are about. Importing this declares them all."""

from config.services import changing, looking, schemas, upkeep

__all__ = ["changing", "looking", "schemas", "upkeep"]
