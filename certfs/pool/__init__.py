"""One pool of many hosts: a certificate that is dropped on one is trusted on all (promise I22).

The only package that uses the network. It knows the engine (etcd) and the directories of certificates in a store;
nothing that serves a mount knows of it, and it nothing of them.
"""

import os
from typing import Final

STATE: Final = "/var/lib/certfs/pool"
STATE_VARIABLE: Final = "CERTFS_POOL_STATE"


def state_directory() -> str:
    """Return where this host keeps its membership of a pool, unless a command is told another place."""
    return os.environ.get(STATE_VARIABLE, STATE)
