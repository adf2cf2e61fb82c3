"""The loopback interface: Prefect's embedded server needs it, a sealed-off machine may lack it."""

from __future__ import annotations

import fcntl
import socket
import struct
import sys

# <linux/sockios.h> and <linux/if.h>
_GET_FLAGS, _SET_FLAGS, _UP = 0x8913, 0x8914, 0x1
_REQUEST = "16sh14x"  # struct ifreq: the interface's name, its flags


def ensure() -> None:
    """Bring loopback up where it is down, as in a network namespace just made (`unshare -n`).

    Raises:
        SystemExit: it is down and this user may not change that; the message says what to do.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("127.0.0.1", 9))  # a datagram socket sends nothing to connect
        except OSError:
            try:
                request = fcntl.ioctl(probe, _GET_FLAGS, struct.pack(_REQUEST, b"lo", 0))
                name, flags = struct.unpack(_REQUEST, request)
                fcntl.ioctl(probe, _SET_FLAGS, struct.pack(_REQUEST, name, flags | _UP))
            except OSError as error:
                sys.exit(
                    f"retrain: the loopback interface is down ({error}): run "
                    "`ip link set lo up` as root, or set PREFECT_API_URL to a server's address"
                )
