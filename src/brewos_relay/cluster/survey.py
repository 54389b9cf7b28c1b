"""Survey: ask every instance of a cluster for an answer."""

from typing import Final

import trio

from brewos_relay.cluster.broker import BrokerConnection
from brewos_relay.cluster.requests import Requests
from brewos_relay.instances import Survey, SurveyedInstance, read_description

ANSWER_S: Final = 2.0
"""How long an instance may take to answer."""


async def survey(connection: BrokerConnection, requests: Requests) -> Survey:
    """List the instances, and measure how long the bus and each of them take to answer.

    Raises BrokerError if the connection to the bus is lost.

    **Owns:** a nursery with a task for each instance, `ask`. **Ends when:** all have answered, or after 2 s.
    """
    began_at = trio.current_time()
    await connection.now_us()
    bus_ms = (trio.current_time() - began_at) * 1000
    descriptions = await connection.instances()
    answered: dict[str, float] = {}

    async def ask(name: str) -> None:
        asked_at = trio.current_time()
        if await requests.answers(name):
            answered[name] = (trio.current_time() - asked_at) * 1000

    with trio.move_on_after(ANSWER_S):
        async with trio.open_nursery() as nursery:
            for name in descriptions:
                nursery.start_soon(ask, name)
    return Survey(
        bus_ms,
        [
            SurveyedInstance(name, read_description(content), answered.get(name))
            for name, content in sorted(descriptions.items())
        ],
    )
