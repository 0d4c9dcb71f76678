"""The configuration operations, by what they are about. Importing this declares them all."""

from config.services import changing, looking, rollouts, schemas, secrets, upkeep

__all__ = ["changing", "looking", "rollouts", "schemas", "secrets", "upkeep"]
