"""A small relay on the Trio server of `websockets`: on_websockets_trio.py PORT DEVICES.csv."""

import json
import ssl
import time
from http import HTTPStatus

from rules import Rules, Session, has_type, main_on_trio
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.trio.server import ServerConnection, broadcast
from websockets.trio.server import serve as serve_websockets


def text_of(message_type: str, **more: object) -> str:
    return json.dumps({"type": message_type, "timestamp": int(time.time() * 1000), **more})


async def be_device(connection: ServerConnection, session: Session) -> None:
    replaced, session.device = session.device, connection
    if replaced is not None:
        await replaced.aclose(4002, "replaced")
    await broadcast(session.apps, text_of("device_online"))
    try:
        await connection.send(text_of("connected"))
        async for message in connection:
            is_text = isinstance(message, str)
            payload = message.encode() if isinstance(message, str) else message
            if has_type(payload, is_text=is_text):
                await broadcast(session.apps, message)
    finally:
        if session.device is connection:
            session.device = None
            await broadcast(session.apps, text_of("device_offline"))


async def be_app(connection: ServerConnection, session: Session, device_id: str) -> None:
    session.apps.append(connection)
    online = session.device is not None
    try:
        await connection.send(text_of("connected", deviceId=device_id, deviceOnline=online))
        async for message in connection:
            if not isinstance(message, str) or not has_type(message.encode(), is_text=True):
                continue
            if session.device is not None:
                await session.device.send(message)
            else:
                await connection.send(text_of("error", error="device_offline"))
    finally:
        session.apps.remove(connection)


async def serve(rules: Rules, port: int, context: ssl.SSLContext | None) -> None:
    admitted: dict[ServerConnection, tuple[bool, str]] = {}

    def admit(connection: ServerConnection, request: Request) -> Response | None:
        status, is_device, device_id = rules.admit(request.path)
        if status != HTTPStatus.SWITCHING_PROTOCOLS:
            return connection.respond(HTTPStatus(status), "")
        admitted[connection] = is_device, device_id
        return None

    async def welcome(connection: ServerConnection) -> None:
        is_device, device_id = admitted.pop(connection)
        session = rules.session(device_id)
        try:
            if is_device:
                await be_device(connection, session)
            else:
                await be_app(connection, session, device_id)
        except ConnectionClosed:
            pass

    await serve_websockets(
        welcome,
        port,
        host="127.0.0.1",
        ssl=context,
        backlog=4096,
        compression=None,
        ping_interval=None,
        process_request=admit,
    )


if __name__ == "__main__":
    main_on_trio(serve)
