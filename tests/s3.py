"""A real S3 server (rclone) on a folder, and a proxy of our own in front that remembers requests and spoils some."""

from __future__ import annotations

import http.client
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

RCLONE = Path(sys.executable).with_name("rclone")
KEY, SECRET = "test-access-key", "test-secret-key"


class S3Server:
    """``rclone serve s3``: each folder in ``folder`` is a bucket, each file an object.

    It remembers what a folder held: what a test changes on the disk after the first request there, it does not see.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.command = [RCLONE, "serve", "s3", "--config", "", "--auth-key", f"{KEY},{SECRET}"]
        self.command += ["--addr", f"127.0.0.1:{self.port}", folder]
        self.process = None

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while True:
            try:
                return socket.create_connection(("127.0.0.1", self.port)).close()
            except ConnectionRefusedError:
                assert self.process.poll() is None and time.monotonic() < deadline
                time.sleep(0.02)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@dataclass
class Fault:
    """Spoils the first ``times`` requests of a method to a path that the pattern is found in."""

    method: str
    path: str
    spoil: Callable[[Handler], bool]  # True: it answered itself
    times: int = 1
    seen: int = 0


class Proxy(ThreadingHTTPServer):
    def __init__(self, server: S3Server):
        super().__init__(("127.0.0.1", 0), Handler)
        self.server = server
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.requests: list[tuple[str, str]] = []
        self.headers: list[dict[str, str]] = []  # of each request, their names in lower case
        self.faults: list[Fault] = []

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def fail(self, method: str, path: str, spoil: Callable[[Handler], bool], times: int = 1) -> Fault:
        self.faults.append(Fault(method, path, spoil, times))
        return self.faults[-1]

    def handle_error(self, *_) -> None:
        pass  # a client that hangs up is what we test


@contextmanager
def serving(server: S3Server) -> Iterator[Proxy]:
    with Proxy(server) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        yield proxy
        proxy.shutdown()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def do_GET(self) -> None:
        self.server.requests.append((self.command, self.path))
        self.server.headers.append({name.lower(): value for name, value in self.headers.items()})
        self.body = b""
        self.change_answer: Callable[[bytes], bytes] = lambda body: body
        for fault in self.server.faults:
            if fault.seen < fault.times and self.command == fault.method and re.search(fault.path, self.path):
                fault.seen += 1
                if fault.spoil(self):
                    return
        self.body += self.rfile.read(int(self.headers.get("Content-Length", 0)) - len(self.body))
        self.forward()

    do_PUT = do_HEAD = do_POST = do_DELETE = do_GET

    def forward(self) -> None:
        upstream = http.client.HTTPConnection("127.0.0.1", self.server.server.port)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("expect", "connection")}
        try:
            upstream.request(self.command, self.path, self.body, headers)
            answer = upstream.getresponse()
            body = self.change_answer(answer.read())
        except OSError:
            return self.hang_up()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "date", "server", "content-length"):
                self.send_header(name, value)
        self.send_header(
            "Content-Length", str(len(body)) if self.command != "HEAD" else answer.getheader("Content-Length", "0")
        )
        self.end_headers()
        self.wfile.write(body)
        upstream.close()

    def hang_up(self) -> bool:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)
        return True

    def log_message(self, *_) -> None:
        pass


def server_error(handler: Handler) -> bool:
    handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
    error = b"<Error><Code>InternalError</Code><Message>We are sorry.</Message></Error>"
    handler.send_response(500)
    handler.send_header("Content-Length", str(len(error)))
    handler.end_headers()
    handler.wfile.write(error)
    return True


def cut_upload(handler: Handler) -> bool:
    """Take half of the body, then hang up."""
    handler.rfile.read(int(handler.headers["Content-Length"]) // 2)
    return handler.hang_up()


def cut_download(handler: Handler) -> bool:
    """Promise the whole, send half, hang up."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    handler.wfile.write(b"x" * 50000)
    return handler.hang_up()


def flip_download(handler: Handler) -> bool:
    handler.change_answer = lambda body: body[:50] + bytes([body[50] ^ 1]) + body[51:]
    return False


def shorten_download(handler: Handler) -> bool:
    """Send less, and say so: nothing but the checksum tells."""
    handler.change_answer = lambda body: body[:-7]
    return False


def flip_upload(handler: Handler) -> bool:
    body = handler.rfile.read(int(handler.headers["Content-Length"]))
    middle = len(body) // 2
    handler.body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
    return False
