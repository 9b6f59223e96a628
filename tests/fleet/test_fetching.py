"""The inside is one server here that remembers every request: a refusal that came too late would show there."""

import asyncio
import ipaddress
import socket
import time

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from web import web

from fleet.fetching import Allowed, Fetcher, FetchError, is_public

LOOPBACK = Allowed(networks=(ipaddress.ip_network("127.0.0.0/8"),))
UNREACHABLE = "could not be reached from here"


@pytest.fixture
def inside():
    with web(lambda request: request.reply(200, b"the inside")) as server:
        yield server


def fetch(address, target, fetcher=None, **limits):
    return asyncio.run((fetcher or Fetcher(LOOPBACK)).fetch(address, target, **limits))


class Resolver(AbstractResolver):
    """Answers each question with the next of its addresses."""

    def __init__(self, *addresses: str):
        self.addresses = list(addresses)

    async def resolve(self, host, port=0, family=socket.AF_INET) -> list[ResolveResult]:
        address = self.addresses.pop(0)
        return [{"hostname": host, "host": address, "port": port, "family": socket.AF_INET, "proto": 0, "flags": 0}]

    async def close(self) -> None:
        pass


def test_what_lies_there_comes_as_it_is(tmp_path):
    content = bytes(range(256)) * 1000
    with web(lambda request: request.reply(200, content, Content_Encoding="gzip")) as server:
        assert fetch(f"{server.url}/a.zip?signature=1", tmp_path / "a").read_bytes() == content
    (seen,) = server.seen
    assert seen.path == "/a.zip?signature=1" and seen.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]", "[::]"],
)
def test_the_inside_is_never_asked(inside, tmp_path, host):
    with pytest.raises(FetchError, match=UNREACHABLE):
        fetch(f"http://{host}:{inside.port}/", tmp_path / "a", Fetcher(Allowed()))
    assert inside.seen == [] and not (tmp_path / "a").exists()


def test_a_redirect_to_the_inside_is_not_followed(inside, tmp_path):
    outside = Allowed(hosts=frozenset(["localhost"]))
    with web(lambda request: request.reply(302, Location=f"http://127.0.0.1:{inside.port}/")) as server:
        with pytest.raises(FetchError, match=UNREACHABLE):
            fetch(f"http://localhost:{server.port}/", tmp_path / "a", Fetcher(outside))
        assert len(server.seen) == 1 and inside.seen == []


def test_a_name_that_becomes_one_of_the_inside_is_not_followed(inside, tmp_path):
    # Whoever asked first to check, and then again to connect, would be led inside by the second answer.
    for addresses in (["127.0.0.1"], ["192.0.2.1", "127.0.0.1"]):
        fetcher = Fetcher(Allowed(), Resolver(*addresses))
        with pytest.raises(FetchError, match=UNREACHABLE):
            fetch(f"http://rebinding.example:{inside.port}/", tmp_path / "a", fetcher)
    assert inside.seen == []


def test_the_answer_is_the_same_whatever_lies_inside(inside, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = free.getsockname()[1]
    said = set()
    for port in (inside.port, closed):
        with pytest.raises(FetchError) as raised:
            fetch(f"http://127.0.0.1:{port}/", tmp_path / "a", Fetcher(Allowed()))
        said.add(str(raised.value).replace(str(port), "PORT"))
    assert said == {f"http://127.0.0.1:PORT/ {UNREACHABLE}."}


def test_a_webhook_is_not_sent_inside_and_follows_no_redirect(inside):
    fetcher = Fetcher(Allowed(hosts=frozenset(["localhost"])))
    with pytest.raises(FetchError, match=UNREACHABLE):
        asyncio.run(fetcher.post(f"{inside.url}/hook", b"{}", {}))
    with web(lambda request: request.reply(307, Location=f"http://localhost:{inside.port}/")) as server:
        assert asyncio.run(fetcher.post(f"http://localhost:{server.port}/hook", b"{}", {"X-Hello": "1"})) == 307
        assert (server.seen[0].body, server.seen[0].headers["x-hello"]) == (b"{}", "1")
    assert inside.seen == []


def test_redirects_are_followed_a_few_times(tmp_path):
    def answer(request):
        left = int(request.path[1:])
        request.reply(302, Location=f"/{left - 1}") if left else request.reply(200, b"here")

    with web(answer) as server:
        assert fetch(f"{server.url}/5", tmp_path / "a").read_bytes() == b"here"
        with pytest.raises(FetchError, match="more than 5 times"):
            fetch(f"{server.url}/6", tmp_path / "b")


def test_too_large_is_refused_said_or_not(tmp_path):
    def endless(request):
        request.send_response(200)
        request.end_headers()
        for _ in range(1000):
            request.wfile.write(b"x" * 100_000)

    for answer in (endless, lambda request: request.reply(200, b"x" * 3_000_000)):
        with web(answer) as server, pytest.raises(FetchError, match="more than 2 MB"):
            fetch(server.url, tmp_path / "a", limit=2_000_000)
    assert list(tmp_path.iterdir()) == []


def test_too_slow_is_given_up(tmp_path):
    def slow(request):
        request.send_response(200)
        request.end_headers()
        for _ in range(50):
            request.wfile.write(b"x")
            time.sleep(0.1)

    with web(slow) as server, pytest.raises(FetchError, match="took too long"):
        fetch(server.url, tmp_path / "a", seconds=0.3)
    assert list(tmp_path.iterdir()) == []


def test_what_the_web_answers_is_said_without_the_signature(tmp_path):
    with web(lambda request: request.reply(403)) as server, pytest.raises(FetchError) as raised:
        fetch(f"{server.url}/a.zip?signature=secret", tmp_path / "a")
    assert str(raised.value) == f"{server.url}/a.zip answers HTTP 403."


@pytest.mark.parametrize(
    "address", ["/etc/hostname", "file:///etc/hostname", "ftp://a/b", "http://", "http://u:p@host/", "http://[/"]
)
def test_what_is_no_web_address_is_not_fetched(tmp_path, address):
    with pytest.raises(FetchError, match="not an address this server fetches"):
        fetch(address, tmp_path / "a")


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.215.14", True),
        ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", True),
        ("::ffff:93.184.215.14", True),
        ("64:ff9b::5db8:d70e", True),
        ("10.0.0.1", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("fe80::1", False),
        ("fd00::1", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::a00:1", False),
        ("2002:a00:1::", False),
    ],
)
def test_which_addresses_are_public(address, public):
    assert is_public(ipaddress.ip_address(address)) is public


def test_the_operator_allows_networks_and_hosts(monkeypatch, inside, tmp_path):
    monkeypatch.setenv("FETCH_ALLOW", "10.1.0.0/16, localhost")
    fetcher = Fetcher()
    assert fetch(f"http://localhost:{inside.port}/", tmp_path / "a", fetcher).read_bytes() == b"the inside"
    with pytest.raises(FetchError, match=UNREACHABLE):  # the same place, by a name that was not allowed
        fetch(inside.url, tmp_path / "b", fetcher)
    assert Allowed.open().lets("10.1.2.3", ipaddress.ip_address("10.1.2.3"))
    for wrong in ("10.1.0.1/16", "http://minio", "300.1.1.1"):
        monkeypatch.setenv("FETCH_ALLOW", wrong)
        with pytest.raises(ValueError, match="FETCH_ALLOW"):
            Allowed.open()
