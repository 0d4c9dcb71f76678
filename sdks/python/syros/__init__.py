"""Syros from Python. `syros.client.Client` calls every operation; `syros.cli` is the command line."""

__version__ = "0.1.0"
