"""Addresses of servers on a network: what a user writes, checked before anything listens or dials."""

import ipaddress
import re
from typing import Any

from bigbatch.comm.kinds import Text, Whole

PORT = Whole(most=2**16 - 1)
"""The kind of value for a port of TCP."""

_ADDRESS = re.compile(r"tcp://(\[[^\s\[\]/]+\]|[^\s\[\]/:]+):([^\s:]+)")


class Address(Text):
    """The kind of value that is the address of a server, tcp://HOST:PORT.

    Args:
        any_port: whether the port may be *, for a server that takes one that is free.
    """

    def __init__(self, *, any_port: bool = False) -> None:
        super().__init__("ADDRESS")
        self._any_port = any_port

    def read(self, value: Any) -> str:
        """Returns the address, if its host and its port can be ones."""
        address = super().read(value)
        found = _ADDRESS.fullmatch(address)
        if found is None or not (found[2].isdecimal() or (self._any_port and found[2] == "*")):
            free = ", or * for one that is free" if self._any_port else ""
            raise ValueError(f"is no address; write tcp://HOST:PORT, with a port from 1 to {PORT.most:,}{free}")
        if found[2] != "*":
            try:
                PORT.read(found[2])
            except ValueError:
                raise ValueError(f"has no port; write one from 1 to {PORT.most:,} after the last colon") from None
        return address


def needs_ipv6(address: str) -> bool:
    """Whether the host of an address is in brackets, as those of IPv6 are; ZeroMQ has to be told."""
    return "[" in address


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach an address, tcp://HOST:PORT."""
    host = address.removeprefix("tcp://").rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
