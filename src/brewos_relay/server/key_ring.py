"""Read the keys that sign tokens from the settings. Commands import this module: it must not import Trio."""

from brewos_relay.auth.signing_keys import PrivateKey, load_private_key
from brewos_relay.auth.tokens import KeyRing
from brewos_relay.errors import SettingsError
from brewos_relay.settings import Settings


def read_key_ring(settings: Settings) -> KeyRing:
    """Read the secrets and the files of keys. Raises SettingsError if one is invalid."""
    secrets = settings.require_jwt_secrets()
    private_keys: list[PrivateKey] = []
    for file in settings.jwt_key_files:
        try:
            private_keys.append(load_private_key(file.read_bytes()))
        except (OSError, ValueError) as problem:
            what = f"it cannot be read: {problem.strerror}" if isinstance(problem, OSError) else problem
            raise SettingsError(f"BREWOS_RELAY_JWT_KEY_FILES contains {file}: {what}") from None
    try:
        return KeyRing(secrets, private_keys)
    except ValueError as problem:
        raise SettingsError(f"JWT_SECRET: {problem}; `brewos-relay secret` generates one") from None
