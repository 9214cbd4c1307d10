"""Addresses of servers: one kind of value for whoever listens and whoever dials."""

from pathlib import Path

import pytest

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.server.network.address import Address, is_loopback
from bigbatch.comm.server.network.sockets import Dialer, Listener

WRONG = (
    *("tcp://127.0.0.1:99999", "tcp://127.0.0.1:65536", "tcp://127.0.0.1:0", "tcp://127.0.0.1:-1"),
    *("tcp://127.0.0.1", "tcp://127.0.0.1:", "tcp://:5555", "127.0.0.1:5555", "localhost", "", " ", "tcp://"),
    *("tcp://127.0.0.1:٣", "tcp://127.0.0.1:5,5", "tcp://127.0.0.1:1e3", "tcp://127.0.0.1:0x10", "tcp://a b:1"),
    *("ipc:///tmp/x", "http://127.0.0.1:80", "tcp://::1:5555", "tcp://127.0.0.1:5555/x", "tcp://127.0.0.1:5:6", 5555),
)


@pytest.mark.parametrize("address", WRONG)
def test_what_is_no_address_is_refused_before_anything_listens_or_dials(address):
    # ZeroMQ takes the port modulo 2¹⁶ and listens at 34463.
    for kind in (Address(), Address(any_port=True)):
        with pytest.raises(ValueError, match=r"is no address|has no port|is empty|is no text"):
            kind.read(address)
    with pytest.raises(ConfigurationError, match="The address of a server cannot be"):
        Listener(address, None)
    with pytest.raises(ConfigurationError, match="The address of a server cannot be"):
        Dialer(address, None)


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this machine has no IPv6")
def test_a_server_listens_at_an_address_of_ipv6():
    """ZeroMQ speaks IPv4 alone unless told (zeromq/pyzmq 989): "No such device"."""
    listener = Listener("tcp://[::1]:*", None)
    try:
        dialer = Dialer(listener.open(2**16), None)
        dialer.send([b"a word"])
        _, frames = listener.receive(10.0)
        assert [bytes(frame) for frame in frames] == [b"a word"]
        dialer.close()
    finally:
        listener.close()


def test_addresses_are_read_as_they_are():
    for address in ("tcp://127.0.0.1:5555", "tcp://[::1]:65535", "tcp://node-3.cluster:1", "tcp://10.0.0.1:80"):
        assert Address().read(address) == address
    assert Address(any_port=True).read("tcp://127.0.0.1:*") == "tcp://127.0.0.1:*"
    with pytest.raises(ValueError, match=r"port from 1 to 65,535$"):
        Address().read("tcp://127.0.0.1:*")
    assert [is_loopback(f"tcp://{host}:1") for host in ("127.0.0.1", "[::1]", "localhost", "10.0.0.1", "node")] == [
        *(True, True, True, False, False)
    ]
