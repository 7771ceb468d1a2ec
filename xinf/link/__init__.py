"""The transport of the Link: one gRPC stream on a connection of its own, HTTP/2 on the event loop.

Owns frames, flow control, messages and statuses of such a stream, at the client's end (the gateway) and the server's
(the shim). Knows nothing of what the messages say, and imports nothing of xinf.

Invariants: no task, future or queue per message; whatever a peer sends, memory stays bounded and nothing is raised into
the event loop; an owner hears once that its stream is over.
"""

from xinf.link.client import ClientListener, ClientStream, open_stream
from xinf.link.door import Door
from xinf.link.server import ServerListener, ServerStream

__all__ = ["ClientListener", "ClientStream", "Door", "ServerListener", "ServerStream", "open_stream"]
