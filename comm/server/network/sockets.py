"""ZeroMQ: the sockets of servers and workers."""

import time
from collections.abc import Sequence
from typing import Any

import zmq
from zmq.auth.thread import ThreadAuthenticator
from zmq.utils.monitor import recv_monitor_message

from bigbatch.comm.errors import CommunicationError, ConfigurationError
from bigbatch.comm.kinds import checked
from bigbatch.comm.server.network.address import Address, is_loopback, needs_ipv6
from bigbatch.comm.server.network.keys import Keys
from bigbatch.comm.server.network.messages import Frame
from bigbatch.comm.server.network.wire import Wire

FAILED_HANDSHAKES = 5
"""After so many failed handshakes in a row a worker takes the server's key for another one; a single failure can mean
that the server was just ended."""


class Listener:
    """The socket at which a server listens for its workers.

    Args:
        address: tcp://HOST:PORT to listen at; port * takes any that is free.
        keys: the server's keys; without them, it listens only to its own machine.

    Attributes:
        audience: who can connect, in words.

    Raises:
        ConfigurationError: other machines can reach that address and there are no keys, or the keys are a worker's.
    """

    def __init__(self, address: str, keys: Keys | None) -> None:
        address = checked("The address of a server", Address(any_port=True), address)
        if keys is None and not is_loopback(address):
            raise ConfigurationError(
                f"Without keys a server listens only to its own machine, such as at tcp://127.0.0.1:5555, but not at "
                f"{address}. Make keys with: bigbatch-exp ps keys FILE, and say --keys FILE."
            )
        if keys is not None and not keys.server_secret:
            raise ConfigurationError("These are a worker's keys; a server needs the file that they were made with.")
        self.audience = "to this machine alone" if keys is None else "to those who have the keys"
        self._context = zmq.Context()
        self._authenticator: ThreadAuthenticator | None = None
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.ipv6 = needs_ipv6(address)
        self._socket.linger = 1000
        self._socket.sndhwm = 0  # an answer is never dropped; requests bound how many there are
        if keys is not None:
            self._authenticator = ThreadAuthenticator(self._context)
            self._authenticator.start()
            self._authenticator.configure_curve_callback("*", OnlyOne(keys.worker_public.encode()))
            self._socket.curve_server = True
            self._socket.curve_publickey = keys.server_public.encode()
            self._socket.curve_secretkey = keys.server_secret.encode()
        events = zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
        self._monitor = self._socket.get_monitor_socket(events | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL)
        self._turned_away = 0
        self._address = address

    def open(self, largest: int) -> str:
        """Begins to listen at the address.

        Args:
            largest: bytes of the largest frame that anyone has reason to send; whoever sends one of more than twice as
                much is hung up on before there is room made for it.

        Returns:
            The address at which it listens.

        Raises:
            ConfigurationError: it cannot listen there, for example because the port is taken.
        """
        self._socket.maxmsgsize = 2 * largest
        try:
            self._socket.bind(self._address)
        except zmq.ZMQError as error:
            raise ConfigurationError(f"A server cannot listen at {self._address}: {error}.") from error
        return self._socket.get_string(zmq.LAST_ENDPOINT)

    @property
    def turned_away(self) -> int:
        """Number of connections that failed, for a wrong key or because they spoke no ZeroMQ."""
        while self._monitor.poll(0):
            recv_monitor_message(self._monitor)
            self._turned_away += 1
        return self._turned_away

    def receive(self, seconds: float) -> tuple[bytes, list[Frame]] | None:
        """Waits up to `seconds` for the next message; returns its sender and its frames, or None if none came."""
        if not self._socket.poll(round(1000 * seconds)):
            return None
        sender, *frames = self._socket.recv_multipart(copy=False)
        return sender.bytes, [frame.buffer for frame in frames]

    def send(self, target: bytes, frames: Sequence[Frame]) -> None:
        """Sends frames to a worker, unless it has hung up; their buffers must not change any more."""
        self._socket.send_multipart([target, *frames], copy=False)

    def close(self) -> None:
        """Stops listening, after waiting up to a second for the last answers to leave."""
        self._socket.disable_monitor()
        self._monitor.close()
        self._socket.close()
        if self._authenticator is not None:
            self._authenticator.stop()
        self._context.term()


class OnlyOne:
    """Accepts connections with one particular public key, and no others."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def callback(self, _: str, key: bytes) -> bool:
        """Whether a connection's public key is the one that is accepted."""
        return key == self._key


class Dialer(Wire):
    """The socket of a worker, which connects to a server and connects again after that was started again.

    Args:
        address: tcp://HOST:PORT of the server.
        keys: the worker's keys, if the server has keys.

    Raises:
        ConfigurationError: the address is no server's address.
    """

    def __init__(self, address: str, keys: Keys | None) -> None:
        address = checked("The address of a server", Address(), address)
        self.name = address
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.ipv6 = needs_ipv6(address)
        self._socket.linger = 0
        self._socket.sndhwm = 0  # sending never blocks, even when there is no server for a while
        if keys is not None:
            self._socket.curve_publickey = keys.worker_public.encode()
            self._socket.curve_secretkey = keys.worker_secret.encode()
            self._socket.curve_serverkey = keys.server_public.encode()
        self._with_keys = keys is not None
        # Against a network that swallows packets: ZeroMQ asks the other end for a sign of life, and connects again.
        self._socket.heartbeat_ivl, self._socket.heartbeat_timeout = 2000, 10_000
        self._socket.reconnect_ivl, self._socket.reconnect_ivl_max = 100, 1000
        self._monitor = self._socket.get_monitor_socket()
        self._failed = 0
        try:
            self._socket.connect(address)
        except zmq.ZMQError as error:
            self.close()
            raise ConfigurationError(f"{address!r} is no server's address; write tcp://HOST:PORT ({error}).") from error
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)

    def send(self, frames: Sequence[Frame]) -> None:
        """Sends a message at once, or as soon as there is a connection."""
        self._socket.send_multipart(frames, copy=False)

    def receive(self, seconds: float) -> list[Frame] | None:
        """Waits up to `seconds` for the next message; returns its frames, or None if none came."""
        until = time.monotonic() + seconds
        while True:
            ready = dict(self._poller.poll(round(1000 * max(0.0, until - time.monotonic()))))
            if self._socket in ready:
                return [frame.buffer for frame in self._socket.recv_multipart(copy=False)]
            if self._monitor in ready:
                self._watch(recv_monitor_message(self._monitor)["event"])
            elif not ready:
                return None

    def _watch(self, event: Any) -> None:
        """Give up where trying again is no use."""
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._failed = 0
        self._failed += event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL or self._failed >= FAILED_HANDSHAKES:
            reason = "these keys are another server's" if self._with_keys else "it wants keys: say --keys FILE"
            raise CommunicationError(f"The server at {self.name} hangs up: {reason}, or it is none of bigbatch's.")
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            raise CommunicationError(
                f"The server at {self.name} does not know these keys: ask its owner for the right ones."
            )

    def now(self) -> float:
        """The time on this machine's monotonic clock, in seconds."""
        return time.monotonic()

    def close(self) -> None:
        """Closes the connection to the server."""
        self._socket.disable_monitor()
        self._monitor.close()
        self._socket.close()
        self._context.term()
