"""How much a client has not taken yet, asked of the kernel: the send queue of one TCP connection, by its two ends.

For a server that keeps what a slow client does not read in a channel of its own without telling (Granian's RSGI): while
that channel holds anything, the kernel's queue is full, so a queue that is nearly empty says that everything is out.

Source: Linux, sock_diag(7), linux/inet_diag.h; answers about own sockets need no privilege.
"""

from __future__ import annotations

import ipaddress
import socket
import struct

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
NLM_F_REQUEST = 1
NLMSG_ERROR = 2
ALL_STATES = 0xFFFFFFFF
_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port id
_REQUEST = struct.Struct("=BBBBI")  # inet_diag_req_v2: family, protocol, extensions, padding, states
_PORTS = struct.Struct("!HH")
_TAIL = struct.Struct("=III")  # inet_diag_sockid: interface, cookie (none)
_QUEUES = struct.Struct("=II")  # receive queue, send queue
_QUEUES_AT = _HEADER.size + 4 + 48 + 4  # behind family..retransmits, the socket id and `expires`
ANSWER_BYTES = 8192


class SendQueues:
    """Asks the kernel; one netlink socket, a few microseconds per question, never blocks."""

    def __init__(self) -> None:
        """Raises: OSError where the kernel has no sock_diag."""
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG)
        self._socket.setblocking(False)
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def unsent_bytes(self, local: str, peer: str) -> int | None:
        """Bytes that the peer has not acknowledged; None when there is no such connection (any more).

        `local`, `peer`: "address:port" as Granian writes them. Raises: OSError, ValueError for what is no address.
        """
        local_address, local_port = _split(local)
        peer_address, peer_port = _split(peer)
        is_v6 = len(local_address) == 16
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        request = b"".join(
            (
                _REQUEST.pack(socket.AF_INET6 if is_v6 else socket.AF_INET, socket.IPPROTO_TCP, 0, 0, ALL_STATES),
                _PORTS.pack(local_port, peer_port),
                local_address.ljust(16, b"\0"),
                peer_address.ljust(16, b"\0"),
                _TAIL.pack(0, 0xFFFFFFFF, 0xFFFFFFFF),
            )
        )
        length = _HEADER.size + len(request)
        self._socket.send(_HEADER.pack(length, SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, self._sequence, 0) + request)
        while True:
            # The kernel answers within the call that asks; what is there may still be the answer to an earlier one.
            answer = self._socket.recv(ANSWER_BYTES)
            _, kind, _, sequence, _ = _HEADER.unpack_from(answer)
            if sequence != self._sequence:
                continue
            if kind == NLMSG_ERROR:
                return None
            return int(_QUEUES.unpack_from(answer, _QUEUES_AT)[1])


def _split(end: str) -> tuple[bytes, int]:
    host, _, port = end.rpartition(":")
    return ipaddress.ip_address(host.strip("[]")).packed, int(port)
