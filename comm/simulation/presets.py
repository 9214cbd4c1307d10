"""Networks by name: what their makers and those who measured them say.

A bandwidth is the line rate divided by eight, which no message quite reaches: frames have headers. An α is a typical
time one way for a small message, software included. γ is the time in which a receiver's memory moves three bytes for
every byte added: it reads both summands and writes the sum, and the adding itself hides behind that.

Measurements of your own are better than any of these: `bigbatch-exp calibrate` makes them, for this machine.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from bigbatch.comm.cache import cache_folder
from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.registry import unknown_name
from bigbatch.comm.simulation.network import FREE, Network, wire
from bigbatch.comm.simulation.network_file import read_network

THIS_MACHINE = "this-machine"
"""The name of the network whose numbers were measured on this machine."""

_MOVED = 3
"""Bytes that memory moves for each byte added: two are read, one is written."""

_SERVER = 204.8e9
"""Bytes a second of a server's memory: eight channels of DDR4-3200, of eight bytes each."""
_A100 = 2.039e12
"""Bytes a second of an A100 SXM 80 GB's memory."""
_H100 = 3.35e12
"""Bytes a second of an H100 SXM's memory."""

_INTO = {
    _SERVER: "204.8 GB/s, a server's eight channels of DDR4-3200 (AMD EPYC 7003 datasheet)",
    _A100: "2039 GB/s (NVIDIA A100 datasheet, SXM 80 GB)",
    _H100: "3.35 TB/s (NVIDIA H100 datasheet, SXM)",
}

_SLOW_TCP = (
    "50 µs, an estimate: half of request and response took 23 µs with a NIC that interrupts at once and 92 µs with one "
    "that holds interrupts back (Li, “An investigation into transport protocols and data transport applications over "
    "high performance networks”, 2006, figure A.8, UDP at 1 Gb/s)"
)
_TCP = (
    "20 µs between applications over TCP (Hurwitz and Feng, “Initial end-to-end performance evaluation of 10-Gigabit "
    "Ethernet”, 2003, measured at 10 Gb/s)"
)
_ROCE = (
    "2.8 µs for a send of 2 KB over RoCEv2 (Zhu et al., “Congestion control for large-scale RDMA deployments”, 2015, "
    "section 2, measured at 40 Gb/s)"
)
_EDR = (
    "1.05 µs by RDMA between two nodes with EDR (Microsoft, “HC-series VM size performance”, MicrosoftDocs/azure-docs, "
    "articles/virtual-machines)"
)
_HDR = (
    "1.2 µs for one byte by RDMA between two nodes with HDR (Microsoft, “HBv3-series virtual machine performance”, "
    "MicrosoftDocs/azure-docs, articles/virtual-machines)"
)
_NDR = (
    f"an estimate, HDR's {_HDR}; of NDR, Microsoft says less than 2 µs (“HBv4-series VM sizes performance and "
    "scalability”, same place)"
)


def _flat(name: str, gigabits: int, standard: str, alpha: float, why: str, memory: float) -> Network:
    """A network of NICs of so many Gb/s, one for each rank, around one switch."""
    source = (
        f"Bandwidth: {gigabits} Gb/s ({standard}) / 8. α: {why}. γ: three bytes moved for each one added, over "
        f"{_INTO[memory]}."
    )
    return Network(name, wire(alpha, gigabits * 1e9 / 8), gamma=_MOVED / memory, source=source)


_FLAT = (
    _flat("ethernet-1g", 1, "IEEE 802.3ab", 50e-6, _SLOW_TCP, _SERVER),
    _flat("ethernet-10g", 10, "IEEE 802.3ae", 20e-6, _TCP, _SERVER),
    _flat("ethernet-25g", 25, "IEEE 802.3by", 20e-6, _TCP, _SERVER),
    _flat("ethernet-100g", 100, "IEEE 802.3bj", 2.8e-6, _ROCE, _A100),
    _flat("ethernet-400g", 400, "IEEE 802.3bs", 2.8e-6, _ROCE, _H100),
    _flat("infiniband-edr", 100, "InfiniBand EDR, four lanes", 1.05e-6, _EDR, _SERVER),
    _flat("infiniband-hdr", 200, "InfiniBand HDR, four lanes", 1.2e-6, _HDR, _A100),
    _flat("infiniband-ndr", 400, "InfiniBand NDR, four lanes", 1.2e-6, _NDR, _H100),
)

_DGX_H100 = Network(
    "dgx-h100",
    wire(14e-6, 400e9 / 8),
    gamma=_MOVED / _H100,
    node_size=8,
    nics=8,
    inside=wire(3.4e-6, 450e9),
    source=(
        "Bandwidth: 400 Gb/s (InfiniBand NDR, eight ports, NVIDIA DGX H100 user guide) / 8 between nodes; inside, half "
        "of NVLink's 900 GB/s, which are for both directions (NVIDIA H100 datasheet), through NVSwitches. α: 14 µs "
        "between nodes, 3.4 µs inside, what NCCL assumes of a step of its ring with the protocol Simple "
        "(NVIDIA/nccl, src/graph/tuning.cc); more than infiniband-ndr's, since kernels on two GPUs must meet. γ: three "
        f"bytes moved for each one added, over {_INTO[_H100]}."
    ),
)

NETWORKS: Mapping[str, Network] = MappingProxyType({each.name: each for each in (*_FLAT, _DGX_H100, FREE)})
"""Networks by name; `source` says where each of their numbers comes from."""


def network_named(name: str) -> Network:
    """Looks up a network by its name, or reads it from a file.

    Args:
        name: one of `NETWORKS`; `this-machine`, if it was calibrated; or a path that ends in .toml, for `read_network`.

    Raises:
        ConfigurationError: no network has that name, this machine was not calibrated, or the file cannot be read.
    """
    if name in NETWORKS:
        return NETWORKS[name]
    if name.endswith(".toml"):
        return read_network(Path(name))
    if name != THIS_MACHINE:
        raise unknown_name("network", name, [*NETWORKS, THIS_MACHINE], "; or name a file that ends in .toml")
    path = cache_folder() / f"{THIS_MACHINE}.toml"
    if not path.exists():
        raise ConfigurationError(f"This machine's wires were not measured yet. Run: bigbatch-exp calibrate ({path}).")
    return read_network(path)
