"""The ways into Syros that a behaviour is run through."""

from tests.doors.base import Answer, Django, Door, Lane, Python, Refused, Served, free_port
from tests.doors.graphql import GraphQL
from tests.doors.grpc import Batches, Grpc
from tests.doors.websocket import WebSocket

DOORS = {door.name: door for door in (Python, Django, Lane, GraphQL, Grpc, Batches, WebSocket)}
__all__ = ["DOORS", "Answer", "Django", "Door", "Lane", "Python", "Refused", "Served", "free_port"]
