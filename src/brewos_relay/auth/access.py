"""Who may reach which device, as far as a token alone can tell."""

from brewos_relay.auth.tokens import Claims


def claims_name_device(claims: Claims, device_id: str) -> bool:
    """Tell whether a token names this device (an id in upper case) or all devices.

    If it does not, its user may still have the device: that is for the registry to say.
    """
    return claims.devices == "*" or device_id in claims.devices
