"""A relay for another kind of device: a greenhouse with its own dialect."""

import trio

from brewos_relay import CommandClass, Dialect, Grant, MemoryEnd, Rule, memory_peer, open_relay

GREENHOUSE = Dialect(
    state="climate",
    state_change="climate_change",
    state_request="report",
    kept=("sensors",),
    superseded=frozenset({"wind"}),
    commands=(
        Rule("water", CommandClass.USE, "opens the valve for a minute"),
        Rule("set_window", CommandClass.USE, "opens or closes the window", waits=True),
        Rule("calibrate", CommandClass.MANAGE, "sets the sensors to zero"),
    ),
)
MEMBER = Grant(user_id="ada", may_manage=False)


async def receive(end: MemoryEnd, message_type: str) -> str:
    """Wait for a message of this type, and return its text."""
    while True:
        message = await end.receive()
        if message.peek_type() == message_type:
            return message.payload.decode()


async def main() -> None:
    async with open_relay(dialect=GREENHOUSE) as relay:
        peer, greenhouse = memory_peer()
        relay.attach_device("GREENHOUSE-1", peer)
        await greenhouse.send({"type": "climate", "seq": 1, "air": {"celsius": 21.5, "humidity": 60}})
        await greenhouse.send({"type": "climate_change", "seq": 2, "air": {"celsius": 22}})
        await trio.sleep(0.1)  # the relay reads both

        peer, app = memory_peer()
        relay.attach_client("GREENHOUSE-1", peer, grant=MEMBER)
        print("a new app receives:", await receive(app, "climate"))

        await app.send({"type": "command", "cmd": "water"})
        print("the greenhouse receives:", await receive(greenhouse, "command"))

        await app.send({"type": "command", "cmd": "calibrate"})
        print("a member may not calibrate:", await receive(app, "error"))

        greenhouse.close()
        await receive(app, "device_offline")
        await app.send({"type": "command", "cmd": "set_window", "mode": "open"})
        print("the greenhouse is offline:", await receive(app, "device_status"))

        peer, greenhouse = memory_peer()
        relay.attach_device("GREENHOUSE-1", peer)
        print("it comes back and receives:", await receive(greenhouse, "command"))


if __name__ == "__main__":
    trio.run(main)
