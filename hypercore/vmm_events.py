"""What a VMM reports of itself as a stream of JSON documents through a pipe.

Bounded in what it keeps, for its writer may be in a guest's hands. What an event means is the
provider's to say. Bound to the running event loop.
"""

import asyncio
import json
import os
from collections.abc import Callable, Mapping

CHUNK_BYTES = 16 * 1024
MAX_DOCUMENT_BYTES = 16 * 1024
"""Cloud Hypervisor's are 150 bytes."""

Event = Mapping[str, object]


class EventPipe:
    """Calls `on_event` with each JSON object that arrives; whatever else comes is passed over."""

    def __init__(self, on_event: Callable[[Event], None]) -> None:
        self._on_event = on_event
        self._loop = asyncio.get_running_loop()
        self._held = ""
        self._decoder = json.JSONDecoder()
        self._read_fd, self.write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        """write_fd is for the VMM; close_writer() once it has it"""
        self._loop.add_reader(self._read_fd, self._read)

    def close_writer(self) -> None:
        """Close our own copy of the writer's end."""
        fd, self.write_fd = self.write_fd, -1
        if fd >= 0:
            os.close(fd)

    def drain(self) -> None:
        """Take what the pipe holds now, such as the last words of a VMM that has ended."""
        while self._read_fd >= 0 and self._read():
            pass

    def close(self) -> None:
        """Idempotent."""
        self.close_writer()
        fd, self._read_fd = self._read_fd, -1
        if fd >= 0:
            self._loop.remove_reader(fd)
            os.close(fd)

    def _read(self) -> bool:
        """Take one chunk; False when there is none now, or never will be."""
        try:
            chunk = os.read(self._read_fd, CHUNK_BYTES)
        except BlockingIOError:
            return False
        if not chunk:  # all writers are gone
            self._loop.remove_reader(self._read_fd)
            return False
        self._held += chunk.decode(errors="replace")
        self._take_documents()
        return True

    def _take_documents(self) -> None:
        while self._held:
            self._held = self._held[self._held.find("{") :] if "{" in self._held else ""
            try:
                document, end = self._decoder.raw_decode(self._held)
            except ValueError:
                if len(self._held) > MAX_DOCUMENT_BYTES:  # it will never become one
                    self._held = ""
                return
            except RecursionError:
                self._held = ""
                return
            self._held = self._held[end:]
            if isinstance(document, dict):
                self._on_event(document)
