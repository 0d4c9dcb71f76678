"""Syros from Python. `syros.client.Client` calls every operation; `syros.cli` is the command line; `syros.guard` and
`syros.django` let databases of your own refuse stale fencing tokens."""

__version__ = "0.1.0"
