"""Execute: commands in batches over one stream, results as they are ready."""

import asyncio
import contextlib
from dataclasses import dataclass
from functools import partial
from typing import Any

from google.protobuf.unknown_fields import UnknownFieldSet
from grpc import aio
from grpc.aio import ServicerContext as Context

from api import requests
from api.grpc.calls import check_size, converted, decoded, headers_of, peer_of
from api.grpc.status import refuse
from api.messages import Messages, Values, add_unknown, build, check_known, plain
from api.proto import field_of, is_command
from api.requests import Headers
from core.callers import Call, Caller, turned_away
from core.encoding import encode
from core.errors import Invalid, NotFound, SyrosError, TooLarge, Unavailable
from core.operations import Operation, Outcome
from core.runtime import runtime

COMMANDS = 1000  # of one batch, and of one stream under way
STREAM_BYTES = 16 << 20  # of one stream under way
PROCESS_COMMANDS = 10_000  # of all streams under way
REPLY_BYTES = 1 << 20  # of results that go together into one message
LAST_SECONDS = 0.5  # for the last answers of a stream whose caller is not let in any more


@dataclass(frozen=True, slots=True)
class Asked:
    """A command as it was read."""

    number: str
    size: int  # bytes
    headers: Headers
    # The name of its field and its parameters, or why there are none.
    found: tuple[str, Values] | SyrosError


class Commands:
    """How commands are read and results written; and the streams of this process."""

    def __init__(self, operations: list[Operation], known: Messages) -> None:
        self.request = known["CoordinationServiceExecuteRequest"]
        self._response = known["CoordinationServiceExecuteResponse"]
        self.operations = {field_of(each): each for each in operations if is_command(each)}
        requests = {name: known.request(each) for name, each in self.operations.items()}
        self._readers = {name: known.reader(kind.DESCRIPTOR) for name, kind in requests.items()}
        self._answers = {name: known.response(each) for name, each in self.operations.items()}
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
        """The process stops: read no further, but answer what was read."""
        self._left = True
        for stream in self.streams:
            stream.leave()

    def read(self, command: Any, body: bytes) -> tuple[str, Values]:
        """The name of a command's field and the parameters in it.

        Raises: TooLarge; NotFound, of what a later version may know; Invalid.
        """
        name = command.WhichOneof("operation")
        if name:
            check_size(self.operations[name], len(body))
        check_known(command, body)
        others = UnknownFieldSet(command)
        if name and not others:
            return name, self.operations[name].parse(self._readers[name](getattr(command, name)))
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
        answer = build(self._answers[name], self._writers[name](outcome.value))
        return self._response(results=[{**about, name: answer}]).SerializeToString()

    def refused(self, number: str, error: SyrosError, identity: str) -> bytes:
        problem = error.problem(identity)
        extra = {name: problem.pop(name) for name in error.extra if name != "errors"}
        written = self._write_problem({**problem, "extra": plain(extra)})
        result = {"id": number, "status": error.status, "replayed": False, "error": written}
        return self._response(results=[result]).SerializeToString()


class Execution:
    """One stream: a task that reads, one that writes, one that looks whether the caller is still let in, and one for
    each command under way."""

    def __init__(self, commands: Commands, context: Context) -> None:
        self._commands, self._context = commands, context
        self._headers = headers_of(context)
        self._identity = requests.request_id(self._headers)
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[bytes]] = set()
        self._waits: set[asyncio.Task[bytes]] = set()  # those of them that wait
        self._results: list[bytes] = []
        self._bytes = 0
        self._changed, self._freed = asyncio.Event(), asyncio.Event()
        self._is_beginning = False  # what was read
        self._end: SyrosError | None = None
        self._limit = asyncio.timeout(None)
        self._reading = self._loop.create_task(self._read())

    async def run(self) -> None:
        """Serve it to the end: the peer's, who has sent all or is gone, the credential's, or this process's."""
        self._commands.streams.add(self)
        self._reading.add_done_callback(lambda _: self._changed.set())
        watching = self._loop.create_task(self._watch())
        try:
            with contextlib.suppress(TimeoutError):
                async with self._limit:
                    await self._write()
            if error := self._ending():
                refuse(self._context, error, self._identity)
        finally:
            self._commands.streams.discard(self)
            for task in (watching, self._reading, *self._tasks):
                task.cancel()

    def leave(self) -> None:
        """Read no further."""
        if not self._reading.done():
            self._stop(Unavailable("This process is stopping."))

    async def _watch(self) -> None:
        """End the stream soon after its caller is not let in any more; what waits leaves its queue."""
        self._stop(await turned_away(self._caller))
        for task in self._waits:
            task.cancel()
        self._limit.reschedule(self._loop.time() + LAST_SECONDS)

    def _stop(self, error: SyrosError) -> None:
        """Read no further, for this reason. What was read is begun to its end, so that all of it is answered."""
        self._end = error
        if not self._is_beginning:
            self._reading.cancel()

    def _ending(self) -> SyrosError | None:
        """Why the stream was not read to its end, or not answered, if so it is."""
        if self._end or self._reading.cancelled():
            return self._end
        error = self._reading.exception()
        if isinstance(error, aio.BaseError):
            return None  # the peer is gone
        return requests.refusal(error, "Execute", self._identity) if isinstance(error, Exception) else None

    # -- in ------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        await self._caller()
        while not self._end and (body := await self._context.read()) is not aio.EOF:
            self._is_beginning = True
            caller = await self._caller()  # each time: a key may have been revoked since
            await self._begin(body, caller)
            del body  # nothing of a batch is kept: a command that waits would keep all of it
            self._is_beginning = False
            await self._room()

    async def _begin(self, body: bytes, caller: Caller) -> None:
        for asked in await converted(len(body), self._asked, body):
            await self._start(asked, caller)

    def _asked(self, body: bytes) -> list[Asked]:
        batch = decoded(self._commands.request, body).commands
        if len(batch) > COMMANDS:
            raise TooLarge(f"A batch has at most {COMMANDS} commands.", limit=COMMANDS)
        return [self._asked_one(command) for command in batch]

    def _asked_one(self, command: Any) -> Asked:
        body = command.SerializeToString()
        found: tuple[str, Values] | SyrosError
        try:
            found = self._commands.read(command, body)
        except Exception as error:
            found = requests.refusal(error, "Execute", self._identity)
        return Asked(command.id, len(body), self._headers_of(command), found)

    async def _caller(self) -> Caller:
        peer = "" if requests.credential(self._headers) else peer_of(self._context)
        return await requests.caller_of(self._headers, peer)

    async def _room(self) -> None:
        """Read no further while much is under way, or not taken by the peer."""
        while not self._end and self._is_full():
            self._freed.clear()
            await self._freed.wait()

    def _is_full(self) -> bool:
        return len(self._tasks) + len(self._results) >= COMMANDS or self._bytes >= STREAM_BYTES

    async def _start(self, asked: Asked, caller: Caller) -> None:
        """Begin a command, in its turn. What goes wrong is its problem alone."""
        try:
            self._check_open()
            if isinstance(asked.found, SyrosError):
                raise asked.found
            call = await requests.call_by(caller, asked.headers, self._identity)
            self._check_open()
        except Exception as error:
            self._results.append(self._refusal(asked.number, error, "Execute"))
            self._changed.set()
            return
        call.size = asked.size
        name, params = asked.found
        task = self._loop.create_task(self._carry(asked.number, name, params, call))
        self._tasks.add(task)
        if params.get("wait_seconds"):
            self._waits.add(task)
        self._bytes += asked.size
        self._commands.under_way += 1
        task.add_done_callback(partial(self._done, asked.number, asked.size))

    def _check_open(self) -> None:
        """Raises: Unavailable, and what the stream ends with."""
        if self._end:
            raise self._end
        if self._commands.under_way >= PROCESS_COMMANDS:
            raise Unavailable("Too many commands are under way.")

    def _headers_of(self, command: Any) -> Headers:
        return Headers(
            namespace=command.namespace or self._headers.namespace,
            idempotency_key=command.idempotency_key,
            traceparent=self._headers.traceparent,
        )

    async def _carry(self, number: str, name: str, params: Values, call: Call) -> bytes:
        operation = self._commands.operations[name]
        try:
            outcome = await runtime.run(operation, call, params)
            size = len(encode(outcome.value))
            found: bytes = await converted(size, self._commands.answered, number, name, outcome)
            return found
        except Exception as error:
            return self._refusal(number, error, operation.name)

    def _refusal(self, number: str, error: Exception, name: str) -> bytes:
        found = requests.refusal(error, name, self._identity)
        return self._commands.refused(number, found, self._identity)

    # -- out -----------------------------------------------------------------------------------------

    def _done(self, number: str, size: int, task: "asyncio.Task[bytes]") -> None:
        self._tasks.discard(task)
        self._waits.discard(task)
        self._bytes -= size
        self._commands.under_way -= 1
        if not task.cancelled():
            self._results.append(task.result())
        elif self._end:
            self._results.append(self._refusal(number, self._end, "Execute"))
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
