"""The gate that nodes go through: of all that a SuperLink offers, they reach what is for nodes.

    python -m fedsim.deployment.gate --upstream https://superlink:8000 --ca ca.crt ...

Flower serves nodes, operators and its own processes at one port, and asks operators for no
password: whoever reaches it may start runs, that is, run code at every node. So nodes are given
this in its place. It ends their TLS, passes on what goes to the fleet's paths, and refuses the
rest. What a node sends is signed with its key all the same, and checked by the SuperLink.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import ssl
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

# Each of the fleet's paths is one word, so that none leads up and into another's.
OPEN = re.compile(r"/health|/v1/fleet/[a-z-]+")
METHODS = ["GET", "POST"]
# Of the hop itself, and not of what is carried (RFC 9110, 7.6.1).
HOP_BY_HOP = {
    *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer"),
    *("transfer-encoding", "upgrade", "host", "content-length"),
}
CONNECT_SECONDS, ANSWER_SECONDS = 5.0, 300.0
LARGEST_BODY_BYTES = 256 * 2**20


def make_gate(upstream: str, authority: Path | None) -> Starlette:
    """Return the gate as an ASGI application.

    Args:
        upstream: the SuperLink's URL.
        authority: the certificate that it is trusted by; None without TLS.
    """
    verify: ssl.SSLContext | bool = True
    if authority is not None:
        verify = ssl.create_default_context(cafile=str(authority))
    timeout = httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS)
    client = httpx.AsyncClient(base_url=upstream, verify=verify, timeout=timeout, trust_env=False)

    async def passed_on(request: Request) -> Response:
        path = request.scope["path"]  # decoded, and as it came: a URL would be read once more
        if not OPEN.fullmatch(path):
            return PlainTextResponse("there is nothing here for nodes", 404)
        body = b"".join([part async for part in bounded(request.stream())])
        if len(body) > LARGEST_BODY_BYTES:
            return PlainTextResponse("too large", 413)
        try:
            answer = await client.request(
                request.method,
                path,
                params=request.query_params,
                headers=carried(request.headers.raw),
                content=body,
            )
        except httpx.TransportError as error:  # nodes try again, as they would without the gate
            return PlainTextResponse(f"the SuperLink does not answer: {error}", 503)
        headers = {
            name: value
            for name, value in answer.headers.items()
            if is_carried(name) and name.lower() != "content-encoding"  # it was decoded here
        }
        return Response(answer.content, answer.status_code, headers)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with client:
            yield

    return Starlette(routes=[Route("/{path:path}", passed_on, methods=METHODS)], lifespan=lifespan)


async def bounded(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield a body's parts up to the first byte too many: nobody was asked for a key yet."""
    received = 0
    async for part in parts:
        received += len(part)
        yield part
        if received > LARGEST_BODY_BYTES:
            return


def carried(headers: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return the headers that go on with a request."""
    return [(name, value) for name, value in headers if is_carried(name.decode("latin-1"))]


def is_carried(name: str) -> bool:
    """Say whether a header is of what is carried, and not of the hop."""
    return name.lower() not in HOP_BY_HOP


def main() -> None:
    """Serve until stopped."""
    parser = argparse.ArgumentParser(
        prog="python -m fedsim.deployment.gate", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--upstream", required=True, metavar="URL", help="the SuperLink's")
    parser.add_argument("--ca", type=Path, metavar="FILE", help="who signed its certificate")
    parser.add_argument("--certificate", metavar="FILE", help="that nodes are shown")
    parser.add_argument("--key", metavar="FILE", help="of that certificate")
    parser.add_argument("--host", default="127.0.0.1", help="to listen at")
    parser.add_argument("--port", type=int, default=8000, help="to listen at (default: 8000)")
    options = parser.parse_args()
    uvicorn.run(
        make_gate(options.upstream, options.ca),
        host=options.host,
        port=options.port,
        ssl_certfile=options.certificate,
        ssl_keyfile=options.key,
        access_log=False,
        log_level="warning",
        server_header=False,
    )


if __name__ == "__main__":
    main()
