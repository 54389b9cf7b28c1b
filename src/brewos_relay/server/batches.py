"""Store what the relay has collected, in batches. A batch that cannot be stored is put back for later."""

import logging
from collections.abc import Awaitable, Callable

from brewos_relay.errors import RegistryError

log = logging.getLogger(__name__)


async def store_batch(
    store: Callable[[], Awaitable[None]], *, what: str, put_back: Callable[[], None]
) -> bool:
    """Store a batch; False if the registry fails. `what` names it in the log.

    `put_back` is called unless the batch was stored, also if this is cancelled.
    """
    is_stored = False
    try:
        await store()
        is_stored = True
    except RegistryError as problem:
        log.warning("cannot store %s: %s; retrying", what, problem)
    finally:
        if not is_stored:
            put_back()
    return is_stored
