"""A bridge that makes a machine from readings over UDP, and forwards the machine's commands.

A microcontroller or script sends datagrams with its readings, such as
{"brew": 92.8, "pressure": 9.1, "on": true}. The bridge keeps the last value of each and sends changes to the
relay. It sends commands of apps to the source of the last datagram, as {"set": "brew", "to": 93.5} or
{"set": "on", "to": false}.

    python bridge.py https://relay.example BRW-12AB34CD key.json 9000

At the first start it creates a key. Scan the QR code that it prints to become the owner of the machine.
"""

import argparse
import json
from typing import Any

import trio

from brewos_relay.client import Command, Device, KeyStore, LinkState, Pairing, open_device


class Machine:
    """The readings of the machine, and the address that they come from."""

    def __init__(self, socket: trio.socket.SocketType) -> None:
        self.socket = socket
        self.readings: dict[str, Any] = {"brew": 0.0, "pressure": 0.0, "on": False, "brewSetpoint": 93.0}
        self.source: tuple[str, int] | None = None

    def state(self) -> dict[str, Any]:
        """Return the state in the format of the apps."""
        now = self.readings
        return {
            "machine": {"state": "ready" if now["on"] else "idle", "mode": "on" if now["on"] else "standby"},
            "temps": {"brew": {"current": now["brew"], "setpoint": now["brewSetpoint"]}},
            "pressure": now["pressure"],
        }

    async def listen(self, device: Device) -> None:
        """Receive readings, and report the state after each; the library sends significant changes."""
        while True:
            data, self.source = await self.socket.recvfrom(2048)
            try:
                self.readings |= {
                    key: value for key, value in json.loads(data).items() if key in self.readings
                }
            except (ValueError, AttributeError):
                continue  # not a reading
            device.report(self.state())

    async def obey(self, command: Command) -> str:
        """Forward a command to the machine; return the result."""
        if command.name == "set_temp" and command.get("boiler", "brew") == "brew":
            order = {"set": "brew", "to": float(command["temp"])}
            self.readings["brewSetpoint"] = order["to"]
        elif command.name == "set_mode":
            order = {"set": "on", "to": command.get("mode") in ("on", "ready", "brew")}
        else:
            return f"{command.name}: not supported by this machine"
        if self.source is None:
            return f"{command.name}: no reading received yet, so there is no address to send it to"
        await self.socket.sendto(json.dumps(order).encode(), self.source)
        return f"{command.name}: forwarded"


async def obey_all(machine: Machine, device: Device) -> None:
    """Forward the machine's commands, and report each result to the clients."""
    async for command in device:
        if command.kind == "command":
            try:
                message = await machine.obey(command)
            except (KeyError, TypeError, ValueError):
                message = f"{command.name}: invalid fields"
            print(message)
            await device.send({"type": "log", "level": "info", "source": "bridge", "message": message})
            device.report(machine.state())


async def print_status(device: Device) -> None:
    """Print each status of the connection."""
    async for status in device.statuses():
        print(f"{status.state}: {status.reason}" if status.reason else status.state, flush=True)
        if status.state is LinkState.STOPPED:
            raise SystemExit(1)  # a supervisor may restart this program


async def main(url: str, device_id: str, key_file: str, port: int, host: str = "127.0.0.1") -> None:
    """Run the bridge until Ctrl-C."""
    key_store = KeyStore(key_file)
    pairing = Pairing(url, device_id, key_store)
    with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as socket:
        await socket.bind((host, port))
        async with (
            open_device(url, device_id, key_store, register=pairing.register) as device,
            trio.open_nursery() as nursery,
        ):
            print(pairing.qr_for_terminal())
            print(pairing.pairing_url, flush=True)
            machine = Machine(socket)
            nursery.start_soon(print_status, device)
            nursery.start_soon(machine.listen, device)
            nursery.start_soon(obey_all, machine, device)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make a machine from readings over UDP.")
    parser.add_argument("url")
    parser.add_argument("device_id")
    parser.add_argument("key_file")
    parser.add_argument("port", type=int)
    given = parser.parse_args()
    try:
        trio.run(main, given.url, given.device_id, given.key_file, given.port)
    except* KeyboardInterrupt:
        pass
