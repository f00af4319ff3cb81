"""A slow, lossy stretch of network: a TCP proxy that delays every byte and now and then holds a stream up.

Runs in a container of its own, with nothing but Python's standard library:

    python3 tcp_proxy.py LISTEN_PORT HOST PORT DELAY_S STALL_SHARE STALL_S

It begins as a good network; SIGUSR1 makes it a bad one, SIGUSR2 a good one again. In a bad one, each piece that is read
in either direction is passed on DELAY_S seconds later, in order. A share of the pieces is held up for STALL_S more, and
all that follows on that connection waits behind it: what a lost packet does to a stream, until it is sent again.
"""

from __future__ import annotations

import asyncio
import random
import signal
import sys
from dataclasses import dataclass


@dataclass
class Network:
    """How bad the network is: seconds of delay, and the share of pieces that are held up for how many seconds more."""

    delay: float
    stall_share: float
    stall: float
    is_bad: bool = False

    def turn(self, is_bad: bool) -> None:
        self.is_bad = is_bad
        print("bad" if is_bad else "good", flush=True)

    def takes(self) -> float:
        if not self.is_bad:
            return 0.0
        return self.delay + (self.stall if random.random() < self.stall_share else 0.0)


async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, network: Network) -> None:
    """Passes a stream on, late; ends when either side ends."""
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    async def deliver() -> None:
        while True:
            due, piece = await pieces.get()
            if (left := due - loop.time()) > 0:
                await asyncio.sleep(left)
            if not piece:
                writer.close()
                return
            writer.write(piece)
            await writer.drain()

    delivery = asyncio.create_task(deliver())
    due = 0.0
    piece = b" "
    try:
        while piece:
            piece = await reader.read(65536)
            # Never earlier than the piece before it: the order is kept.
            due = max(due, loop.time() + network.takes())
            pieces.put_nowait((due, piece))
        await delivery
    except OSError:
        delivery.cancel()
        writer.close()


async def serve(listen_port: int, host: str, port: int, network: Network) -> None:
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(host, port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(pass_on(reader, far_writer, network), pass_on(far_reader, writer, network))

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, network.turn, True)
    loop.add_signal_handler(signal.SIGUSR2, network.turn, False)
    server = await asyncio.start_server(accept, "0.0.0.0", listen_port)
    print(f"listening on {listen_port}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    listen, target, target_port, *figures = sys.argv[1:]
    delay, stall_share, stall = map(float, figures)
    asyncio.run(serve(int(listen), target, int(target_port), Network(delay, stall_share, stall)))
