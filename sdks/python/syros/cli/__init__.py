"""The command `syros`."""
