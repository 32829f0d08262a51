"""An echo server that remembers when it accepted each connection: `inv bench stress` measures rates with it.

Prints its port; at the end of its stdin, one JSON object: connections, connects per second between the first and
the last, and the most in any 100 ms.
"""

import bisect
import json
import os
import select
import socket
import sys
import time

listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
listener.setblocking(False)
print(listener.getsockname()[1], flush=True)
epoll = select.epoll()
for one in (listener.fileno(), 0):
    epoll.register(one, select.EPOLLIN)
times: list[float] = []
links: dict[int, socket.socket] = {}
running = True
while running:
    for fd, _ in epoll.poll():
        if fd == listener.fileno():
            while True:
                try:
                    link = listener.accept()[0]
                except BlockingIOError:
                    break
                times.append(time.monotonic())
                links[link.fileno()] = link
                epoll.register(link, select.EPOLLIN)
        elif fd == 0:
            running = False
        else:
            try:
                data = os.read(fd, 65536)
                if data:
                    os.write(fd, data)
            except ConnectionError:
                data = b""
            if not data:
                links.pop(fd).close()
span = times[-1] - times[0] if len(times) > 1 else 0.0
most = max((bisect.bisect_left(times, begun + 0.1) - place for place, begun in enumerate(times)), default=0)
json.dump(
    {"connections": len(times), "per_second": (len(times) - 1) / span if span else 0.0, "most": most}, sys.stdout
)
