"""What an admin types who knows xe, and how certfs is told the same.

Owns the names of xe's commands and parameters (``ocaml/xapi-cli-server/cli_frontend.ml`` in xapi-project/xen-api).
"""

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Final

COMMANDS: Final[Mapping[str, str]] = {
    "certificate-list": "pool-certificate-list",
    "host-emergency-reset-server-certificate": "reset-server-certificate",
    "host-reset-server-certificate": "reset-server-certificate",
    "pool-certificate-install": "pool-install-ca-certificate",
    "pool-certificate-uninstall": "pool-uninstall-ca-certificate",
    "pool-crl-install": "pool-install-crl",
    "pool-crl-uninstall": "pool-uninstall-crl",
    "pool-install-trusted-certificate": "pool-install-ca-certificate --purpose general",
    "pool-uninstall-trusted-certificate": "pool-uninstall-ca-certificate --purpose general",
}
"""Commands of xe by another name here."""

_FILE: Final = {"filename": ""}
_NAME: Final = {"name": "", "force": "--force"}
_PARAMETERS: Final[Mapping[str, Mapping[str, str]]] = {
    "host-get-server-certificate": {},
    "host-refresh-server-certificate": {},
    "host-server-certificate-install": {
        "certificate": "--certificate",
        "private-key": "--private-key",
        "certificate-chain": "--certificate-chain",
    },
    "pool-certificate-list": {},
    "pool-certificate-sync": {},
    "pool-crl-list": {},
    "pool-install-ca-certificate": {**_FILE, "name": "--name", "purpose": "--purpose"},
    "pool-install-crl": {**_FILE, "name": "--name"},
    "pool-uninstall-ca-certificate": _NAME,
    "pool-uninstall-crl": _NAME,
    "reset-server-certificate": {},
}
"""What a parameter of xe is here; the empty string stands for the argument itself."""
_OF_A_HOST: Final = frozenset(
    ("host", "host-uuid", "host-name-label", "uuid", "type", "params", "ca")
)
"""Parameters that say what certfs does in any case: it works on the host that it runs on."""
_WORD: Final = re.compile(r"([a-z-]+)=(.*)", re.DOTALL)


def hint(command: str, words: Sequence[str]) -> str:
    """Return the command line that xe's words stand for, in a sentence; empty if none of them is xe's."""
    parameters = _PARAMETERS.get(command)
    if parameters is None:
        return ""
    said: list[str] = []
    found = ""
    for word in words:
        match = _WORD.fullmatch(word)
        key = match[1] if match else ""
        if not match or os.path.exists(word) or key not in {*parameters, *_OF_A_HOST}:
            said.append(word)
            continue
        found = found or word
        option = parameters.get(key)
        if option == "--force":
            said += [option] if match[2] != "false" else []
        elif option is not None:
            said += [one for one in (option, match[2]) if one]
    if not found:
        return ""
    line = shlex.join(["certfs", command, *said])
    return f"{found!r} is how xe is told. Here, on the host itself: {line}"
