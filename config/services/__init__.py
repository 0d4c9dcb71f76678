"""The configuration operations, by what they are about. Importing this declares them all."""

from config.services import changing, looking, mirroring, rollouts, schemas, secrets, upkeep

__all__ = ["changing", "looking", "mirroring", "rollouts", "schemas", "secrets", "upkeep"]
