"""A small relay on picows and uvloop, to compare with: on_picows.py PORT DEVICES.csv [--pem FILE]."""

import json
import ssl
import time
from http import HTTPStatus

from picows import (
    WSFrame,
    WSListener,
    WSMsgType,
    WSTransport,
    WSUpgradeRequest,
    WSUpgradeResponse,
    WSUpgradeResponseWithListener,
    ws_create_server,
)
from rules import Rules, Session, has_type, main

TALK = frozenset({WSMsgType.TEXT, WSMsgType.BINARY})


def say(transport: WSTransport, message_type: str, **more: object) -> None:
    content = {"type": message_type, "timestamp": int(time.time() * 1000), **more}
    transport.send(WSMsgType.TEXT, json.dumps(content).encode())


class Device(WSListener):
    def __init__(self, session: Session) -> None:
        self.session = session

    def on_ws_connected(self, transport: WSTransport) -> None:
        if self.session.device is not None:
            self.session.device.disconnect()
        self.session.device = transport
        say(transport, "connected")
        for app in self.session.apps:
            say(app, "device_online")

    def on_ws_frame(self, _: WSTransport, frame: WSFrame) -> None:
        kind = frame.msg_type
        if kind in TALK:
            payload = frame.get_payload_as_bytes()
            if has_type(payload, is_text=kind is WSMsgType.TEXT):
                for app in self.session.apps:
                    app.send(kind, payload)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        if self.session.device is transport:
            self.session.device = None
            for app in self.session.apps:
                say(app, "device_offline")


class App(WSListener):
    def __init__(self, session: Session, device_id: str) -> None:
        self.session = session
        self.device_id = device_id

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.session.apps.append(transport)
        online = self.session.device is not None
        say(transport, "connected", deviceId=self.device_id, deviceOnline=online)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type is not WSMsgType.TEXT:
            return
        payload = frame.get_payload_as_bytes()
        if not has_type(payload, is_text=True):
            return
        if self.session.device is not None:
            self.session.device.send(WSMsgType.TEXT, payload)
        else:
            say(transport, "error", error="device_offline")

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self.session.apps.remove(transport)


async def serve(rules: Rules, port: int, context: ssl.SSLContext | None) -> None:
    def welcome(request: WSUpgradeRequest) -> WSListener | WSUpgradeResponseWithListener:
        status, is_device, device_id = rules.admit(request.path.decode())
        if status != HTTPStatus.SWITCHING_PROTOCOLS:
            refusal = WSUpgradeResponse.create_error_response(HTTPStatus(status))
            return WSUpgradeResponseWithListener(refusal, None)
        session = rules.session(device_id)
        return Device(session) if is_device else App(session, device_id)

    server = await ws_create_server(welcome, "127.0.0.1", port, ssl=context, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    main(serve)
