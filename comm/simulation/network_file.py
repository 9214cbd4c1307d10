"""Networks as files: TOML, read and written."""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from bigbatch.comm.errors import ConfigurationError, quoted, suggestion
from bigbatch.comm.kinds import BYTES, checked
from bigbatch.comm.simulation.network import ALPHA, BANDWIDTH, Network, Piece, Wire
from bigbatch.comm.toml import read_toml

# Keeping.


def as_toml(network: Network) -> str:
    """Writes a network as the text of a TOML file, which `read_network` reads back."""
    entries = as_entries(network)
    inside = entries.pop("inside", None)
    lines = _table(entries, "")
    return "\n".join([*lines, *([] if inside is None else ["", "[inside]", *_table(inside, "inside.")]), ""])


def _table(entries: Mapping[str, Any], prefix: str) -> list[str]:
    lines = [f"{key} = {_value(value)}" for key, value in entries.items() if key != "larger"]
    for piece in entries.get("larger", ()):
        lines += ["", f"[[{prefix}larger]]", *_table(piece, prefix)]
    return lines


def _value(value: Any) -> str:
    """A string as JSON writes it, which TOML reads alike; a number as Python does, inf included."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def read_network(path: Path) -> Network:
    """Reads a network from a TOML file.

    The keys are `alpha` (seconds), `bandwidth` (bytes a second) and, if wanted, `gamma` (seconds a byte), the other
    attributes of `Network`, `[inside]` with an `alpha` and a `bandwidth`, and a `[[larger]]` for every size from which
    on messages cost something else, with `bytes`, `alpha` and `bandwidth`; `[[inside.larger]]` likewise.

    Raises:
        ConfigurationError: the file cannot be read, or says what no network can have; names the key.
    """
    entries = read_toml(path, f"The network {path}")
    try:
        return network_from(entries, path.stem)
    except ConfigurationError as error:
        raise ConfigurationError(f"The network {path}: {error}") from error


def network_from(entries: Mapping[str, Any], name: str) -> Network:
    """Makes a network from the entries of a TOML file; see `read_network`."""
    own = {field.name for field in fields(Network)} - {"wires", "inside"}
    _known(entries, {"alpha", "bandwidth", "larger", "inside", *own})
    settings = {key: entries[key] for key in own if key in entries}
    inside = entries.get("inside")
    if inside is not None:
        if not isinstance(inside, Mapping):
            raise ConfigurationError("inside must be a table, with alpha and bandwidth.")
        _known(inside, {"alpha", "bandwidth", "larger"}, "inside: ")
        settings["inside"] = _wire(inside, "inside.")
    return Network(**{"name": name, "wires": _wire(entries), **settings})


def as_entries(network: Network) -> dict[str, Any]:
    """The entries of a network's TOML file, from which `network_from` makes the same network."""

    def of(wires: Wire) -> dict[str, Any]:
        first, *others = ({"alpha": p.alpha, "bandwidth": p.bandwidth, "bytes": p.least} for p in wires.pieces)
        del first["bytes"]
        return {**first, **({"larger": others} if others else {})}

    entries = {field.name: getattr(network, field.name) for field in fields(network)}
    wires, inside = entries.pop("wires"), entries.pop("inside")
    return {**entries, **of(wires), **({"inside": of(inside)} if inside is not None else {})}


def _wire(entries: Mapping[str, Any], prefix: str = "") -> Wire:
    larger = entries.get("larger", [])
    if not isinstance(larger, list) or not all(isinstance(entry, Mapping) for entry in larger):
        raise ConfigurationError(f"{prefix}larger must be tables, [[larger]], with bytes, alpha and bandwidth.")
    first = {"bytes": 0, **{key: entries[key] for key in ("alpha", "bandwidth") if key in entries}}
    pieces = []
    for number, entry in enumerate((first, *larger)):
        place = f"{prefix}larger {number}: " if number else prefix
        _known(entry, {"bytes", "alpha", "bandwidth"}, place)
        for key in ("bytes", "alpha", "bandwidth"):
            if key not in entry:
                raise ConfigurationError(f"{place}{key} is missing.")
        least = checked(f"{place}bytes", BYTES, entry["bytes"]) if number else 0
        alpha = checked(f"{place}alpha", ALPHA, entry["alpha"])
        pieces.append(Piece(least, alpha, checked(f"{place}bandwidth", BANDWIDTH, entry["bandwidth"])))
    return Wire(*pieces)


def _known(entries: Mapping[str, Any], known: set[str], place: str = "") -> None:
    for key in entries:
        if key not in known:
            raise ConfigurationError(
                f"{place}unknown key {quoted(key)}{suggestion(key, known)}. Known: {', '.join(sorted(known))}."
            )
