"""The relay core without a network: one machine and two apps in this process."""

import msgspec
import trio

from brewos_relay import memory_peer, open_relay


async def main() -> None:
    async with open_relay() as relay:
        peer, machine = memory_peer()
        relay.attach_device("BRW-00000001", peer)

        apps = []
        for _ in range(2):
            peer, app = memory_peer()
            relay.attach_client("BRW-00000001", peer)
            apps.append(app)

        await machine.send({"type": "status", "temps": {"brew": {"current": 93.1, "setpoint": 93.0}}})
        for number, app in enumerate(apps):
            await app.receive()  # {"type": "connected", …}
            status = msgspec.json.decode((await app.receive()).payload)
            print(f"app {number} sees {status['temps']['brew']['current']} °C")

        await apps[0].send({"type": "command", "cmd": "set_mode", "mode": "on"})
        await machine.receive()  # {"type": "connected", …}
        command = msgspec.json.decode((await machine.receive()).payload)
        print(f"the machine receives: {command['cmd']} {command['mode']}")


if __name__ == "__main__":
    trio.run(main)
