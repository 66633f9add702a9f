"""A guest's DHCP lease, from its first answer to its release.

The guest has been told its address at boot and keeps it. A server that later refuses to extend it,
or is silent until it has run out, is told of in the log: the guest goes on, for nobody in it can
be asked to take another.
"""

import asyncio
import logging
import os
from dataclasses import replace

from hypercore import bridge, dhcp
from hypercore.attachment import Attachment
from hypercore.errors import DeadlineExceeded, HypercoreError
from hypercore.proto.agent_pb import Interface, Route

log = logging.getLogger(__name__)

_LEAST_WAIT_S, _FOREVER_S = 1.0, 60.0


class Leaseholder:
    """Holds the lease of one microVM; `close` releases it."""

    def __init__(self, microvm_id: str, attachment: Attachment, hostname: str) -> None:
        if attachment.dhcp is None:
            raise ValueError("an attachment without DHCP")
        self._microvm_id = microvm_id
        self._tap_name = attachment.tap_name
        self._link = attachment.dhcp
        self._hostname = hostname
        self._lease: dhcp.Lease | None = None
        self._keeper: asyncio.Task[None] | None = None

    async def acquire(self, attachment: Attachment, deadline: float) -> Attachment:
        """The attachment with what the server has granted, which is kept from now on.

        Raises:
            DeadlineExceeded: no server has granted an address.
        """
        self._lease = lease = await dhcp.acquire(self._link, self._hostname, deadline)
        await asyncio.to_thread(
            bridge.fix_address, self._microvm_id, self._tap_name, lease.address
        )
        self._keeper = asyncio.ensure_future(self._keep())
        return _with_lease(attachment, lease)

    async def renew(self) -> None:
        """Have the lease extended now.

        Raises:
            Refused: the server does not, and the address is to be given up.
            DeadlineExceeded: no server has answered before it ran out.
        """
        if (lease := self._lease) is not None:
            end = asyncio.get_running_loop().time() + (lease.seconds or _FOREVER_S)
            self._lease = await dhcp.renew(self._link, lease, self._hostname, end)

    async def close(self) -> None:
        """Release the lease. Idempotent."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait((self._keeper,))
        if self._lease is not None:
            dhcp.release(self._link, self._lease)
            self._lease = None
        fd, self._link = self._link.fd, replace(self._link, fd=-1)
        if fd >= 0:
            os.close(fd)

    async def _keep(self) -> None:
        while (lease := self._lease) is not None and lease.seconds:
            await asyncio.sleep(max(lease.renew_s, _LEAST_WAIT_S))
            try:
                await self.renew()
            except DeadlineExceeded:
                log.warning(
                    "microVM %s: no DHCP server extends the lease of %s",
                    *(self._microvm_id, lease.address),
                )
            except HypercoreError as exc:
                log.warning("microVM %s: %s", self._microvm_id, exc)
                return
            except OSError as exc:
                log.warning("microVM %s: renew the lease: %s", self._microvm_id, exc)


def _with_lease(attachment: Attachment, lease: dhcp.Lease) -> Attachment:
    (told,) = attachment.interfaces
    interface = Interface(
        name=told.name,
        mac=told.mac,
        addresses=[f"{lease.address}/{lease.prefix_length}", *told.addresses],
        gateways=[*lease.gateways, *told.gateways],
        mtu=min(told.mtu, lease.mtu) if lease.mtu else told.mtu,
        routes=[*(Route(destination=to, gateway=way) for to, way in lease.routes), *told.routes],
    )
    return replace(
        attachment,
        interfaces=(interface,),
        dns_servers=lease.dns
        if attachment.dns_is_default and lease.dns
        else attachment.dns_servers,
        dns_search=lease.search
        if attachment.dns_is_default and lease.search
        else attachment.dns_search,
    )
