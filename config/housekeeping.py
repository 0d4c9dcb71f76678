"""What serving processes do for configuration by themselves."""

from config import mirror

__all__ = ["mirror"]
