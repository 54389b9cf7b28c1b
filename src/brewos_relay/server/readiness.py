"""Whether this server should be sent anybody, and why not."""

import time
from typing import Final

import trio

from brewos_relay.core.relay import Relay
from brewos_relay.errors import RegistryError
from brewos_relay.registry.store import Store
from brewos_relay.server.tls import CertificateFiles

_REGISTRY_S: Final = 2.0
"""What the registry is given to answer."""
_GOOD_FOR_S: Final = 1.0
"""However often somebody asks, the registry is asked once in this time."""


class ReadinessCheck:
    """Looks at what the server needs to be of use."""

    def __init__(self, *, relay: Relay, store: Store, tls: CertificateFiles | None) -> None:
        self._relay = relay
        self._store = store
        self._tls = tls
        self._asking = trio.Lock()
        self._asked_at_s = -_GOOD_FOR_S
        self._answers = True

    async def problems(self) -> list[str]:
        """Give the reasons why nobody should be sent here now; none if all is well."""
        found = []
        if self._relay.closing:
            found.append("the relay is leaving")
        if not await self._registry_answers():
            found.append("the registry does not answer")
        if self._tls is not None and self._tls.certificate.expires_at_s <= time.time():
            found.append("the certificate has expired")
        return found

    async def _registry_answers(self) -> bool:
        async with self._asking:
            if trio.current_time() - self._asked_at_s >= _GOOD_FOR_S:
                self._answers = await self._ask()
                self._asked_at_s = trio.current_time()
            return self._answers

    async def _ask(self) -> bool:
        try:
            with trio.fail_after(_REGISTRY_S):
                await self._store.check()
        except (RegistryError, trio.TooSlowError):
            return False
        return True
