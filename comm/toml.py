"""Files of settings in TOML, as a user writes them."""

import tomllib
from pathlib import Path
from typing import Any

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.files import MB, read_bytes, utf8


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """Reads a file of settings in TOML, without the byte-order mark that some editors put first.

    Args:
        path: the file.
        what: what it is, at the start of a sentence, such as "The network net.toml".

    Raises:
        ConfigurationError: there is no such file, it is no regular one of up to a megabyte, or not TOML; the message
            names the line.
    """
    content = utf8(read_bytes(path, what, MB), what)
    try:
        return tomllib.loads(content)
    except RecursionError:
        raise ConfigurationError(f"{what} is not TOML that can be read: it is nested too deeply.") from None
    except ValueError as error:  # TOMLDecodeError, or Python's own about a number of thousands of digits
        raise ConfigurationError(f"{what} is not TOML: {str(error).rstrip('.')}.") from error
