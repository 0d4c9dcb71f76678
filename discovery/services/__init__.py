"""The discovery operations, by what they are about. Importing this declares them all."""

from discovery.services import looking, registering, upkeep

__all__ = ["looking", "registering", "upkeep"]
