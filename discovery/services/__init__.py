"""The discovery operations, by what they are about. Importing this declares them all."""

from discovery.services import checking, looking, registering, upkeep

__all__ = ["checking", "looking", "registering", "upkeep"]
