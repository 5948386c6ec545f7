"""What `ssh -L` does, between two hosts that have no ssh: one end listens, the other one connects.

python relay.py listen PORT SOCKET      # here: 127.0.0.1:PORT, handed on to the socket
python relay.py connect SOCKET PORT     # there: the socket, handed on to 127.0.0.1:PORT

The socket is a file: those are not divided by network namespaces.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable

Opened = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


def _handing_on(
    connect: Callable[[], Awaitable[Opened]],
) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await connect()
        except OSError:
            writer.close()
            return
        await asyncio.gather(_copy(reader, far_writer), _copy(far_reader, writer))

    return handle


async def main(way: str, first: str, second: str) -> None:
    if way == "listen":
        handle = _handing_on(lambda: asyncio.open_unix_connection(second))
        server = await asyncio.start_server(handle, "127.0.0.1", int(first))
    else:
        handle = _handing_on(lambda: asyncio.open_connection("127.0.0.1", int(second)))
        server = await asyncio.start_unix_server(handle, first)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
