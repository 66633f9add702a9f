# Generated from stdio.proto by scripts/protogen.py; do not edit.
from typing import ClassVar

from hypercore.wire.codec import Message

class Attach(Message):
    namespace: str
    task_id: str
    exec_id: str
    stdin: bool
    stdout: bool
    stderr: bool
    replay: bool
    def __init__(
        self,
        *,
        namespace: str = ...,
        task_id: str = ...,
        exec_id: str = ...,
        stdin: bool = ...,
        stdout: bool = ...,
        stderr: bool = ...,
        replay: bool = ...,
    ) -> None: ...

class CloseStdin(Message):
    def __init__(self) -> None: ...

class Resize(Message):
    rows: int
    columns: int
    def __init__(
        self,
        *,
        rows: int = ...,
        columns: int = ...,
    ) -> None: ...

class StdioRequest(Message):
    attach: Attach | None
    resize: Resize | None
    close_stdin: CloseStdin | None
    def __init__(
        self,
        *,
        attach: Attach | None = ...,
        resize: Resize | None = ...,
        close_stdin: CloseStdin | None = ...,
    ) -> None: ...

class Attached(Message):
    terminal: bool
    def __init__(
        self,
        *,
        terminal: bool = ...,
    ) -> None: ...

class Dropped(Message):
    reason: str
    def __init__(
        self,
        *,
        reason: str = ...,
    ) -> None: ...

class Error(Message):
    code: int
    message: str
    def __init__(
        self,
        *,
        code: int = ...,
        message: str = ...,
    ) -> None: ...

class Exit(Message):
    exit_status: int
    missing_bytes: int
    reason: str
    def __init__(
        self,
        *,
        exit_status: int = ...,
        missing_bytes: int = ...,
        reason: str = ...,
    ) -> None: ...

class StdioReply(Message):
    attached: Attached | None
    exit: Exit | None
    dropped: Dropped | None
    error: Error | None
    def __init__(
        self,
        *,
        attached: Attached | None = ...,
        exit: Exit | None = ...,
        dropped: Dropped | None = ...,
        error: Error | None = ...,
    ) -> None: ...
