"""Everything that a serving process opens: HTTP with its fast lane and Django behind it (WSGI, in a pool of
threads), WebSockets, gRPC.

Run by `manage.py serve`; `application` alone also by any ASGI server.
"""

import os
import socket

from a2wsgi import WSGIMiddleware

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "syros_project.settings")

from syros_project.wsgi import application as django  # sets Django up, which the others need

# isort: split
from django.conf import settings

from api.gate import Gate
from api.graphql.http import Http as GraphQL
from api.graphql.socket import Socket as GraphQLSocket
from api.grpc.server import Grpc
from api.lane import Lane
from api.websocket import Socket
from core.serving import Door, Web
from discovery import dns_server
from discovery.consul_door import Consul

THREADS = 6  # each keeps a connection

lane = Lane(WSGIMiddleware(django, workers=THREADS))  # type: ignore[arg-type]
graphql, websocket, graphql_socket = GraphQL(lane), Socket.as_asgi(), GraphQLSocket.as_asgi()
application = Gate(
    lane,
    http={"/graphql": graphql, "/graphql/": graphql},
    websocket={"/ws": websocket, "/": websocket, "/graphql": graphql_socket, "/graphql/": graphql_socket},
)


def doors(listeners: list[socket.socket], host: str, grpc_port: int) -> list[Door]:
    """The doors of one process.

    Parameters: the sockets of HTTP and WebSocket, which listen already; where gRPC opens its own (port 0: not).
    """
    found: list[Door] = [Web(application, listeners)] if listeners else []
    if grpc_port:
        found.append(Grpc(host, grpc_port))
    return found


def doors_of_one(rest_port: int, dns_port: int) -> list[Door]:
    """Those that only the first of the processes of one `serve` has.

    Parameters: the port that Consul is told of, and that of DNS (0: not).
    Raises: OSError, when DNS cannot have its port; ValueError, of settings that are wrong.
    """
    found: list[Door] = []
    if dns_port:
        found.append(dns_server.listen(settings.DNS_HOST, dns_port))
    if settings.DISCOVERY_CONSUL_URL:
        found.append(Consul(rest_port, settings.WORKS))
    return found
