"""Reading on in a log as it grows: what every operation does that waits for events or streams them."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from time import monotonic
from typing import Annotated, Any

from pydantic import Field

from core.callers import Call
from core.errors import Conflict
from core.log import Entry
from core.retention import pruned
from core.runtime import runtime
from core.tail import PositionPruned, Tail

HeartbeatSeconds = Annotated[float, Field(ge=1, le=60)]


class PositionAhead(Conflict):
    """This log has not reached that position: it is from another log or a later past."""


@dataclass(slots=True)
class Heartbeat:
    position: int


def tail() -> Tail:
    assert runtime.tail, "reads come through a serving runtime"
    return runtime.tail


async def grew(grown: asyncio.Event, seconds: float) -> bool:
    """Wait for the log, or a stream of it, to grow; False if it did not in this time."""
    try:
        # wait_for makes a task of it, which costs more than all the rest.
        async with asyncio.timeout(seconds):
            await grown.wait()
    except TimeoutError:
        return False
    return True


async def head_for(call: Call, position: int, kind: str | None) -> int:
    """The head of the log, if this position is readable in it.

    Parameters: `kind`, how the names of the system streams begin that are wanted; None: those of none.
    Raises: PositionPruned, PositionAhead.
    """
    floor, head = await tail().bounds(call.namespace.number)
    if position <= floor:
        raise PositionPruned(f"The log begins at {floor + 1}.", floor=floor, position=position)
    check_within(head, position)
    # Who begins at the start takes what there is; who goes on would miss what is gone.
    if position > 1 and kind is not None and position <= (gone := await pruned(call.namespace.name, kind)):
        raise PositionPruned(f"History is kept from {gone + 1} on.", floor=gone, position=position)
    return head


async def check_reached(number: int, position: int | None) -> None:
    """Does the log reach what somebody says to have heard of it, or the one after that?

    Raises: PositionAhead.
    """
    if position is not None:
        _, head = await tail().bounds(number)
        check_within(head, position)


def check_within(head: int, position: int) -> None:
    """Raises: PositionAhead."""
    if position > head + 1:
        raise PositionAhead(f"The log ends at {head}.", head=head, position=position)


async def start_of(call: Call, from_position: int | None, kind: str | None) -> int:
    """The position after which who follows begins; None: at the end of the log.

    Raises: PositionPruned, PositionAhead.
    """
    if from_position is None:
        _, head = await tail().bounds(call.namespace.number)
        return head
    position = max(from_position, 1)
    await head_for(call, position, kind)
    return position - 1


async def follow(
    number: int, position: int, item: Callable[[Entry], dict[str, Any] | None], heartbeat_seconds: float
) -> AsyncGenerator[dict[str, Any]]:
    """What there is after a position of a log, then what comes. A heartbeat, the first thing of all, carries
    the position reached, also where nothing matched.

    Parameters: `item` makes of an event what is told of it; None: nothing.
    Raises: Unavailable, once the process stops; PositionAhead, where a failover lost what was told.
    """
    reader = tail()
    yield {"heartbeat": {"position": position}}
    due = monotonic() + heartbeat_seconds
    with reader.listening(number) as grown:
        while True:
            grown.clear()
            if grown.went_back:
                raise PositionAhead("This log went back; read again where it ends.", position=position)
            while entries := await reader.after(number, position):
                for entry in entries:
                    position = entry.position
                    if found := item(entry):
                        yield found
                if monotonic() >= due:
                    yield {"heartbeat": {"position": position}}
                    due = monotonic() + heartbeat_seconds
            # Also while the log grows with what is not wanted: who resumes has to know how far it came.
            if monotonic() >= due or not await grew(grown, due - monotonic()):
                yield {"heartbeat": {"position": position}}
                due = monotonic() + heartbeat_seconds
