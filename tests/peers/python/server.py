"""An echo server on the library `websockets`.

Prints `port N` when it listens, and `closed CODE REASON` for each close that a client began.
A client that asks for /close/CODE/REASON is closed so after its first message.
"""

import asyncio

from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed


async def echo(connection):
    _, *close = connection.request.path.strip("/").split("/")
    try:
        async for message in connection:
            await connection.send(message)
            if close:
                await connection.close(int(close[0]), close[1])
    except ConnectionClosed:
        pass
    # The code that the client sent, whether as the first or in answer.
    print("closed", connection.close_code, connection.close_reason, flush=True)


def choose(_, offered):
    return "chat.v2" if "chat.v2" in offered else None


async def main():
    async with serve(
        echo, "127.0.0.1", 0, max_size=None, select_subprotocol=choose, compression="deflate"
    ) as server:
        print("port", server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()


asyncio.run(main())
