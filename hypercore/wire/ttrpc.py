"""ttrpc 1.2, the protocol of containerd's shims and of our agent: the names to import.

The parts are client.py, server.py, connection.py (what both share) and _frame.pyx (bytes).
"""

from hypercore.wire.client import Client
from hypercore.wire.connection import Connection, Stream, status_of
from hypercore.wire.server import Server

__all__ = ["Client", "Connection", "Server", "Stream", "status_of"]
