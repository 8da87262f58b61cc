"""Connections between clients and a server, without sockets.

The rule: of one direction of a connection, bytes arrive in order, each once; when, and in which
pieces, the seed decides, and nothing is promised about two connections. Transports behave as asyncio's
do: `connection_lost` comes once and last, a full buffer pauses its writer, who closes still sends what
was written, who aborts does not, and bytes for an end that is gone come back as a reset.
"""

import asyncio
import zlib
from collections.abc import Callable
from contextvars import Context, copy_context
from random import Random
from typing import Any

import msgspec

from tests.simulation.loop import STEP, Process, SimulatedLoop

Factory = Callable[[], asyncio.BaseProtocol]


#: Seconds that a piece takes when the network is as quick as the loop: a few steps, so that whatever a
#: server does and whatever arrives come in any order.
QUICK = 3 * STEP


class Conditions(msgspec.Struct, frozen=True):
    """What the network is like."""

    #: seconds that a piece takes, on average
    delay: float = 0.001
    #: how often bytes arrive in more than one piece
    split: float = 0.1
    #: how often a piece takes up to `stall` seconds
    stalls: float = 0.0
    stall: float = 2.0
    #: bytes that are on their way before those behind them count as the writer's buffer
    wire: int = 65536
    #: bytes in the writer's buffer above which it is paused
    high: int = 65536


class Network:
    """All connections. `listen` and `refuse` say who is reached."""

    def __init__(self, loop: SimulatedLoop, random: Random, conditions: Conditions) -> None:
        self.loop = loop
        self.conditions = conditions
        self._random = random
        #: the server's ends, in the order of their creation
        self.ends: list[End] = []
        self._listener: tuple[Factory, Process] | None = None
        #: what the network itself does belongs to no process
        self.context = copy_context()
        self._count = 0
        loop.connect = self.connect

    def listen(self, factory: Factory, process: Process) -> None:
        """Let connections be accepted by a process."""
        self._listener = factory, process

    def refuse(self) -> None:
        """Accept no more."""
        self._listener = None

    async def connect(
        self, factory: Factory, *_: object
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        """Return a connected transport and its protocol. Raises `ConnectionRefusedError`."""
        arrived = self.loop.create_future()
        self.later(self._arrive, arrived)
        await arrived
        if self._listener is None:
            raise ConnectionRefusedError("nobody listens")
        accept, process = self._listener
        self._count += 1
        client = End(self, f"client {self._count}", copy_context(), None)
        server = End(self, f"server {self._count}", process.context, process)
        client.peer, server.peer = server, client
        self.ends.append(server)
        self.later(server.open, accept)
        protocol = factory()
        client.protocol = protocol
        protocol.connection_made(client)
        return client, protocol

    def _arrive(self, arrived: "asyncio.Future[None]") -> None:
        if not arrived.done():
            arrived.set_result(None)

    def open_ends(self) -> list["End"]:
        """Return the server's ends of the connections that are open."""
        self.ends = [end for end in self.ends if not end.gone]
        return self.ends

    def lose(self, process: Process) -> None:
        """Reset all connections of a process that is dead."""
        if self._listener is not None and self._listener[1] is process:
            self.refuse()
        for end in self.open_ends():
            if end.process is process:
                end.vanish()

    # -- for the ends --

    def soon(self, callback: Callable[..., object], *args: object) -> None:
        """Call back at once, but not within whoever asks."""
        self.loop.call_soon(callback, *args, context=self.context)

    def later(self, callback: Callable[..., object], *args: object) -> None:
        """Call back when the seed says."""
        random, conditions = self._random, self.conditions
        delay = random.expovariate(1 / conditions.delay)
        if conditions.stalls and random.random() < conditions.stalls:
            delay += random.uniform(0, conditions.stall)
        self.loop.call_at(self.loop.time() + delay, callback, *args, context=self.context)

    def piece(self, length: int) -> int:
        """Return how many of so many bytes arrive together."""
        random = self._random
        if length > 1 and random.random() < self.conditions.split:
            return random.randint(1, min(length - 1, random.choice((1, 16, 256, length - 1))))
        return length

    def toss(self) -> bool:
        """Return what nothing but the seed decides."""
        return self._random.random() < 0.5


class End(asyncio.Transport):
    """One end of a connection."""

    peer: "End"
    protocol: Any

    def __init__(self, network: Network, name: str, context: Context, process: Process | None) -> None:
        super().__init__()
        self.name = name
        self.process = process
        #: no `connection_lost` will come, or it is on its way
        self.gone = False
        self._network = network
        self._context = context
        self._opened = process is None
        self._out = bytearray()
        #: bytes that were ever written
        self.written = 0
        #: the other end had not closed, and not been lost, when this one did
        self.first = False
        #: no more will be written behind what is in `_out`
        self._ended = False
        self._end_sent = False
        self._closing = False
        self._reading = True
        self._delivering = False
        self._paused = False
        self._high = network.conditions.high
        self._low = self._high // 4

    def open(self, factory: Factory) -> None:
        """Let the server have its end, unless it has died."""
        if self.gone or self.process is None or not self.process.alive:
            return
        self.protocol = self._context.run(factory)
        self._opened = True
        self._network.loop.note(f"{self.name} is open")
        self._call("connection_made", self)
        self.peer._deliver_later()

    @property
    def asked(self) -> bool:
        """Is this the server's end, with a request that is being handled, and no answer has begun?"""
        request = getattr(self.protocol, "_current_request", None) if self._opened else None
        return request is not None and request._payload_writer.output_size == 0

    # -- what asyncio promises of a transport --

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1) if name == "peername" else default

    def is_closing(self) -> bool:
        return self._closing

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self.protocol  # type: ignore[no-any-return]

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def is_reading(self) -> bool:
        return self._reading and not self._closing

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        if not self._reading and not self._closing:
            self._reading = True
            self.peer._deliver_later()

    def get_write_buffer_size(self) -> int:
        return max(0, len(self._out) - self._network.conditions.wire)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = self._network.conditions.high if high is None else high
        self._low = self._high // 4 if low is None else low

    def write(self, data: Any) -> None:
        if self._ended or self._closing:
            return
        self._out += data
        self.written += len(data)
        if not self._paused and self.get_write_buffer_size() > self._high:
            self._paused = True
            # From within what the protocol itself is doing, as asyncio has it.
            self.protocol.pause_writing()
        self._deliver_later()

    def close(self) -> None:
        if self._closing:
            return
        self.first = not self.peer._closing
        self._closing = self._ended = True
        self._deliver_later()
        if not self.get_write_buffer_size():
            self._lose(None)

    def abort(self) -> None:
        if not self.gone:
            self._network.loop.note(f"{self.name} aborts")
            self.first = not self.peer._closing
            self.vanish()
            self._network.soon(self._lost, None)

    # -- what happens to it --

    def vanish(self) -> None:
        """Be gone without a word to the protocol; the other end learns of it."""
        self.gone = self._closing = self._ended = self._end_sent = True
        self._out.clear()
        self._network.later(self.peer.reset)

    def reset(self) -> None:
        """Learn that the other end is gone; what has not arrived is lost."""
        if not self.gone:
            self._network.loop.note(f"{self.name} is reset")
            self.gone = self._closing = self._ended = self._end_sent = True
            self._out.clear()
            self._lost(ConnectionResetError("Connection reset by peer"))

    def _lose(self, error: Exception | None) -> None:
        if not self.gone:
            self.gone = True
            self._network.soon(self._lost, error)

    def _lost(self, error: Exception | None) -> None:
        if self._opened:
            self._call("connection_lost", error)

    def _call(self, name: str, *args: object) -> object:
        if self.process is not None and not self.process.alive:
            return None
        result: object = self._context.run(getattr(self.protocol, name), *args)
        return result

    def _deliver_later(self) -> None:
        if not self._delivering and (self._out or (self._ended and not self._end_sent)):
            self._delivering = True
            self._network.later(self._deliver)

    def _deliver(self) -> None:
        """Bring the other end the next bytes, or the end of them."""
        self._delivering = False
        peer, network = self.peer, self._network
        if not peer._opened and not peer.gone:
            return
        if self._out:
            if peer._closing or peer.gone:
                if network.toss():
                    # The reset overtakes what was still on its way here.
                    peer._out.clear()
                    peer._end_sent = True
                self.reset()
                return
            if not peer._reading:
                return
            size = network.piece(len(self._out))
            data = bytes(self._out[:size])
            del self._out[:size]
            self._relieve()
            network.loop.note(f"{peer.name} receives {size} bytes {zlib.crc32(data):08x}")
            peer._receive(data)
        elif self._ended and not self._end_sent:
            self._end_sent = True
            if not peer._closing and not peer.gone:
                network.loop.note(f"{peer.name} receives the end")
                if not peer._call("eof_received"):
                    peer.close()
        self._deliver_later()

    def _receive(self, data: bytes) -> None:
        try:
            self._call("data_received", data)
        except Exception as error:  # noqa: BLE001 -- as asyncio's transports do
            context = {"message": f"data_received of {self.name}", "exception": error}
            self._network.loop.call_exception_handler(context)
            self.abort()

    def _relieve(self) -> None:
        size = self.get_write_buffer_size()
        if self._paused and size <= self._low and not self.gone:
            self._paused = False
            self._call("resume_writing")
        if self._closing and not size:
            self._lose(None)
