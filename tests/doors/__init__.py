"""The ways into Syros that a behaviour is run through."""

from tests.doors.base import Answer, Django, Door, Lane, Python, Refused, Served, free_port
from tests.doors.websocket import WebSocket

DOORS = {door.name: door for door in (Python, Django, Lane, WebSocket)}
__all__ = [
    "DOORS",
    "Answer",
    "Django",
    "Door",
    "Lane",
    "Python",
    "Refused",
    "Served",
    "WebSocket",
    "free_port",
]
