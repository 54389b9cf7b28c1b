"""A relay, a registry and tokens for the API that are plain data."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from brewos_relay.errors import RegistryError, TokenRejected


@dataclass
class FakeRelay:
    online: set[str] = field(default_factory=set)
    client_count: int = 0
    closing: bool = False
    states: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def device_count(self) -> int:
        return len(self.online)

    def is_online(self, device_id: str) -> bool:
        return device_id in self.online

    def state_of(self, device_id: str) -> dict[str, Any] | None:
        return self.states.get(device_id)


@dataclass(frozen=True)
class FakeDevice:
    id: str
    name: str | None = None
    created_at_ms: int = 1_700_000_000_000
    last_seen_ms: int | None = None


@dataclass
class FakeStore:
    devices: list[FakeDevice] = field(default_factory=list)
    owned: dict[str, list[str]] = field(default_factory=dict)
    failing: bool = False

    async def all_devices(self) -> list[FakeDevice]:
        if self.failing:
            raise RegistryError("the file is locked")
        return self.devices

    async def find_devices(self, ids: Iterable[str], /) -> list[FakeDevice]:
        wanted = set(ids)
        return [device for device in await self.all_devices() if device.id in wanted]

    async def devices_of(self, user_id: str, /) -> list[FakeDevice]:
        return await self.find_devices(self.owned.get(user_id, []))


@dataclass(frozen=True)
class FakeClaims:
    user_id: str = "u1"
    devices: frozenset[str] | Literal["*"] = frozenset()


@dataclass
class FakeTokens:
    good: dict[str, FakeClaims] = field(default_factory=dict)

    def verify(self, token: str, /) -> FakeClaims:
        try:
            return self.good[token]
        except KeyError:
            raise TokenRejected("the token was not signed here") from None
