"""Who calls, and what they may do. How a transport finds that out is its server's business."""

from dataclasses import dataclass

from hypercore.api import Method, Scope
from hypercore.errors import PermissionDenied, Unavailable


class CallerLeft(Unavailable):
    """Who called is gone; there is nobody to tell."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The other side of a connection."""

    name: str
    """for the log and for errors"""
    scope: Scope
    local: bool
    """through a unix socket: may name files of this host"""

    def require(self, method: Method) -> None:
        """Raises PermissionDenied unless the caller may call `method`."""
        if not self.scope.allows(method.scope):
            raise PermissionDenied(
                f"{self.name} has scope {self.scope}, and {method.name} needs {method.scope}",
                hint=f"`hypercore token create --scope {method.scope} NAME` makes a token with it",
            )


LOCAL = Caller("a local caller", Scope.ADMIN, local=True)
"""Who may open our unix socket was decided by its owner and mode."""
