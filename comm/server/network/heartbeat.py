"""Heartbeats: a thread that tells servers that their worker is alive while it computes."""

import math
import threading
from collections.abc import Callable, Sequence

from bigbatch.comm.errors import CommunicationError
from bigbatch.comm.server.network.messages import Kind, Message
from bigbatch.comm.server.network.remote_shard import RemoteShard
from bigbatch.comm.server.network.wire import Wire

BEATS = 5
"""Number of heartbeats within the seconds of silence after which a server goes on without a worker."""


LISTEN_SECONDS = 0.5
"""Seconds, at most, until it notices that it is to stop."""


class Heartbeat(threading.Thread):
    """A thread that sends heartbeats to a worker's servers until `stop`, on wires of its own.

    It is the first to hear that a server has forgotten the worker or was started again, and lets the worker know.

    Args:
        shards: the shards that the worker joins; it sends none before.
        dial: makes a wire to the server at an address.
    """

    def __init__(self, shards: Sequence[RemoteShard], dial: Callable[[str], Wire]) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self._shards = shards
        self._dial = dial
        self._ended = threading.Event()

    def run(self) -> None:
        """Sends heartbeats to all servers until `stop` is called."""
        wires = [self._dial(shard.name) for shard in self._shards]
        self._heard = dict.fromkeys(self._shards, wires[0].now())
        try:
            while not self._ended.is_set():
                patience = min(shard.patience for shard in self._shards)
                interval = patience / BEATS if patience < math.inf else LISTEN_SECONDS
                for shard, wire in zip(self._shards, wires, strict=True):
                    if shard.life:
                        wire.send(Message(Kind.HEARTBEAT, shard.session, shard.life).frames())
                    self._listen(shard, wire, interval / len(wires))
        except CommunicationError:
            # Nothing more can be heard here; the worker's own wires say the same, to somebody who can end it.
            for shard in self._shards:
                shard.hurry = True
        finally:
            for wire in wires:
                wire.close()

    def stop(self) -> None:
        """Stops the heartbeats, and waits until their wires are closed."""
        self._ended.set()
        self.join()

    def _listen(self, shard: RemoteShard, wire: Wire, seconds: float) -> None:
        until = wire.now() + seconds
        while (left := until - wire.now()) > 0 and not self._ended.is_set():
            frames = wire.receive(min(left, LISTEN_SECONDS))
            if frames is None:
                if wire.now() - self._heard[shard] > shard.patience:
                    shard.tell(f"The server at {shard.name} does not answer; this worker waits for it")
                    self._heard[shard] = float("inf")  # that is said once
                continue
            self._heard[shard] = wire.now()
            message = Message.of(frames)
            if message.kind is Kind.ENDED or (message.kind is Kind.GONE and message.life == shard.life):
                shard.hurry = True
