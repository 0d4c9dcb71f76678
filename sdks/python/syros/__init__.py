"""Syros from Python. `syros.client.Client` calls every operation; `syros.cli` is the command line; `syros.guard` and
`syros.django` let databases of your own refuse stale fencing tokens."""

from pkgutil import extend_path

# What protoc makes of Syros's .proto files is `syros.v1`, in a folder of the user's.
__path__ = extend_path(__path__, __name__)
__version__ = "0.1.0"
