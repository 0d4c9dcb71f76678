"""Everything that a serving process opens: HTTP with its fast lane and Django behind it (WSGI, in a pool of
threads), WebSockets, gRPC.

Run by `manage.py serve`; `application` alone also by any ASGI server.
"""

import os
import socket

from a2wsgi import WSGIMiddleware

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "syros_project.settings")

from api.gate import Gate
from api.lane import Lane
from api.websocket import Socket
from core.serving import Door, Web
from syros_project.wsgi import application as django

THREADS = 6  # each keeps a connection

websocket = Socket.as_asgi()
application = Gate(
    Lane(WSGIMiddleware(django, workers=THREADS)),  # type: ignore[arg-type]
    websocket={"/ws": websocket, "/": websocket},
)


def doors(listeners: list[socket.socket], host: str, grpc_port: int) -> list[Door]:
    """The doors of one process.

    Parameters: the sockets of HTTP and WebSocket, which listen already; where gRPC opens its own (port 0: not).
    """
    found: list[Door] = [Web(application, listeners)] if listeners else []
    return found
