"""A client on the library `websockets`: client.py URL.

Tries everything that a tunnel has to carry, and prints what it met as one line of JSON.
Anything that is not as it should be ends it with an error.
"""

import asyncio
import hashlib
import json
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

URL = sys.argv[1]
LENGTHS = [0, 1, 125, 126, 65535, 65536, 1 << 20, 16 << 20]


def noise(length):
    """Bytes that no compression makes smaller."""
    return hashlib.shake_256(b"noise").digest(length)


def open_tunnel(path="/", **options):
    return connect(URL + path, max_size=None, open_timeout=30, close_timeout=30, **options)


async def same(connection, message):
    await connection.send(message)
    back = await connection.recv()
    assert type(back) is type(message) and back == message, f"{len(message)} came back wrong"
    return len(message)


async def messages(met):
    async with open_tunnel(subprotocols=["chat.v1", "chat.v2"]) as connection:
        met["subprotocol"] = connection.subprotocol
        met["deflate"] = any(
            extension.name == "permessage-deflate"
            for extension in connection.protocol.extensions
        )
        met["bytes"] = 0
        for length in LENGTHS:
            met["bytes"] += await same(connection, "über " * (length // 6))
            met["bytes"] += await same(connection, noise(length))


async def fragments():
    parts = ["frag", "", "men", "ted ✓"]
    async with open_tunnel() as connection:
        await connection.send(parts)
        assert await connection.recv() == "".join(parts)
        await connection.send([noise(70_000)] * 3)
        assert await connection.recv() == noise(70_000) * 3


async def pings():
    async with open_tunnel() as connection:
        for payload in [b"", b"x", noise(125)]:
            pong = await connection.ping(payload)
            await asyncio.wait_for(pong, 30)


async def closes(met):
    connection = await open_tunnel()
    await same(connection, "hello")
    await connection.close(4001, "bye from the client")
    connection = await open_tunnel("/close/4002/bye-from-the-server")
    await same(connection, "hello")
    try:
        await connection.recv()
    except ConnectionClosed as closed:
        met["closed"] = [closed.rcvd.code, closed.rcvd.reason]


async def main():
    met = {}
    await messages(met)
    await fragments()
    await pings()
    await closes(met)
    print(json.dumps(met))


asyncio.run(main())
