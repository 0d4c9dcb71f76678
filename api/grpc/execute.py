"""Execute: commands in batches over one stream, results as they are ready."""

import asyncio
from functools import partial
from typing import Any

from google.protobuf.unknown_fields import UnknownFieldSet
from grpc import aio
from grpc.aio import ServicerContext as Context

from api import requests
from api.grpc.calls import as_syros_error, check_size, decoded, headers_of, peer_of
from api.grpc.status import refuse
from api.messages import Messages, Values, add_unknown, plain
from api.proto import field_of, is_command
from api.requests import Headers
from core.callers import Call, Caller, identify
from core.errors import Invalid, NotFound, SyrosError, TooLarge, Unavailable
from core.operations import Operation, Outcome
from core.runtime import runtime

COMMANDS = 1000  # of one batch, and of one stream under way
STREAM_BYTES = 16 << 20  # of one stream under way
PROCESS_COMMANDS = 10_000  # of all streams under way
REPLY_BYTES = 1 << 20  # of results that go together into one message


class Commands:
    """How commands are read and results written; and the streams of this process."""

    def __init__(self, operations: list[Operation], known: Messages) -> None:
        self.request = known["CoordinationServiceExecuteRequest"]
        self._response = known["CoordinationServiceExecuteResponse"]
        self.operations = {field_of(each): each for each in operations if is_command(each)}
        requests = {name: known.request(each) for name, each in self.operations.items()}
        self._readers = {name: known.reader(kind.DESCRIPTOR) for name, kind in requests.items()}
        self._writers = {name: known.answer_writer(each) for name, each in self.operations.items()}
        self._write_problem = known.writer(known["Problem"].DESCRIPTOR)
        self.streams: set[Execution] = set()
        self.under_way = 0
        self._left = False

    async def execute(self, _: object, context: Context) -> None:
        """Serve one stream."""
        stream = Execution(self, context)
        if self._left:
            stream.leave()
        await stream.run()

    def leave(self) -> None:
        """The process stops: read no further, but answer what is under way."""
        self._left = True
        for stream in self.streams:
            stream.leave()

    def read(self, command: Any) -> tuple[str, Values]:
        """The name of a command's field and what is in it.

        Raises: NotFound, of what a later version may know; Invalid.
        """
        name = command.WhichOneof("operation")
        others = UnknownFieldSet(command)
        if name and not others:
            return name, self._readers[name](getattr(command, name))
        unknown: Values = {}
        add_unknown(command, others, unknown)
        if unknown and not name:
            raise NotFound("There is no such operation.", operation=", ".join(sorted(unknown)))
        code, names = ("extra_forbidden", unknown) if unknown else ("missing", ("operation",))
        raise Invalid([{"pointer": f"/{each}", "code": code, "detail": "not a command"} for each in names])

    # Results are written one by one, so that one that cannot be written is nobody else's harm; messages that have
    # one each, put together, are a message that has all of them.

    def answered(self, number: str, name: str, outcome: Outcome) -> bytes:
        about = {"id": number, "status": outcome.status, "replayed": outcome.replayed}
        result = {**about, name: self._writers[name](outcome.value)}
        return self._response(results=[result]).SerializeToString()

    def refused(self, number: str, error: SyrosError, identity: str) -> bytes:
        problem = error.problem(identity)
        extra = {name: problem.pop(name) for name in error.extra if name != "errors"}
        written = self._write_problem({**problem, "extra": plain(extra)})
        result = {"id": number, "status": error.status, "replayed": False, "error": written}
        return self._response(results=[result]).SerializeToString()


class Execution:
    """One stream: a task that reads, a task that writes, and one for each command under way."""

    def __init__(self, commands: Commands, context: Context) -> None:
        self._commands, self._context = commands, context
        self._headers = headers_of(context)
        self._identity = requests.request_id(self._headers)
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[bytes]] = set()
        self._results: list[bytes] = []
        self._bytes = 0
        self._changed, self._freed = asyncio.Event(), asyncio.Event()
        self._reading = self._loop.create_task(self._read())

    async def run(self) -> None:
        """Serve it to the end: the peer's, who has sent all or is gone, or this process's."""
        self._commands.streams.add(self)
        self._reading.add_done_callback(lambda _: self._changed.set())
        try:
            await self._write()
            if error := self._ending():
                refuse(self._context, error, self._identity)
        finally:
            self._commands.streams.discard(self)
            for task in (self._reading, *self._tasks):
                task.cancel()

    def leave(self) -> None:
        self._reading.cancel()

    def _ending(self) -> SyrosError | None:
        """Why the stream was not read to its end, if it was not."""
        if self._reading.cancelled():
            return Unavailable("This process is stopping.")
        error = self._reading.exception()
        if isinstance(error, aio.BaseError):
            return None  # the peer is gone
        return as_syros_error(error, "Execute", self._identity) if isinstance(error, Exception) else None

    # -- in ------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        await self._caller()
        while (body := await self._context.read()) is not aio.EOF:
            caller = await self._caller()  # each time: a key may have been revoked since
            await self._begin(body, caller)
            del body  # nothing of a batch is kept: a command that waits would keep all of it
            await self._room()

    async def _begin(self, body: bytes, caller: Caller) -> None:
        batch = decoded(self._commands.request, body).commands
        if len(batch) > COMMANDS:
            raise TooLarge(f"A batch has at most {COMMANDS} commands.", limit=COMMANDS)
        for command in batch:
            await self._start(command, caller)

    async def _caller(self) -> Caller:
        found = requests.credential(self._headers)
        peer = "" if found else peer_of(self._context)
        return await identify(found, peer=peer, host=self._headers.host, origin=None)

    async def _room(self) -> None:
        """Read no further while much is under way, or not taken by the peer."""
        while len(self._tasks) + len(self._results) >= COMMANDS or self._bytes >= STREAM_BYTES:
            self._freed.clear()
            await self._freed.wait()

    async def _start(self, command: Any, caller: Caller) -> None:
        """Begin a command, in its turn."""
        number, size = command.id, command.ByteSize()
        try:
            if self._commands.under_way >= PROCESS_COMMANDS:
                raise Unavailable("Too many commands are under way.")
            name, values = self._commands.read(command)
            call = await requests.call_by(caller, self._headers_of(command), self._identity)
        except SyrosError as error:
            self._results.append(self._commands.refused(number, error, self._identity))
            self._changed.set()
            return
        call.size = size
        task = self._loop.create_task(self._carry(number, name, values, call))
        self._tasks.add(task)
        self._bytes += size
        self._commands.under_way += 1
        task.add_done_callback(partial(self._done, size))

    def _headers_of(self, command: Any) -> Headers:
        return Headers(
            namespace=command.namespace or self._headers.namespace,
            idempotency_key=command.idempotency_key,
            traceparent=self._headers.traceparent,
        )

    async def _carry(self, number: str, name: str, values: Values, call: Call) -> bytes:
        operation = self._commands.operations[name]
        try:
            check_size(operation, call.size)
            outcome = await runtime.run(operation, call, operation.parse(values))
            return self._commands.answered(number, name, outcome)
        except Exception as error:
            found = as_syros_error(error, operation.name, self._identity)
            return self._commands.refused(number, found, self._identity)

    # -- out -----------------------------------------------------------------------------------------

    def _done(self, size: int, task: "asyncio.Task[bytes]") -> None:
        self._tasks.discard(task)
        self._bytes -= size
        self._commands.under_way -= 1
        if not task.cancelled():
            self._results.append(task.result())
            self._changed.set()

    async def _write(self) -> None:
        """Write results as they come, those that are there together, until no more can come."""
        while True:
            while self._results:
                await self._context.write(self._take())
                self._freed.set()
            if self._reading.done() and not self._tasks:
                return
            self._changed.clear()
            await self._changed.wait()

    def _take(self) -> bytes:
        size = count = 0
        while count < len(self._results) and size < REPLY_BYTES:
            size += len(self._results[count])
            count += 1
        found = b"".join(self._results[:count])
        del self._results[:count]
        return found
