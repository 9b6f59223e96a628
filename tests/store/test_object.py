"""The object store against a real S3 server, with faults made by a proxy in front of it."""

import json
import subprocess
import sys
import uuid
from pathlib import Path
from urllib.parse import quote

import pytest
import s3
from helpers import files_of_a_finetune, manifest_of, publish_files
from s3fs import S3FileSystem

from finetuner.store import Listing, StoreError
from finetuner.store import object as store_object
from finetuner.store.cache import Cache
from finetuner.store.files import MANIFEST, seal
from finetuner.store.object import ObjectStore, cache_budget, index_name

PROJECT = Path(__file__).parents[2]
WEIGHTS = b"weights" * 1000


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = s3.S3Server(tmp_path_factory.mktemp("s3"))
    for number in range(100):
        (server.folder / f"test-{number}").mkdir()
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def all_requests(server):
    with s3.serving(server) as proxy, pytest.MonkeyPatch.context() as environment:
        for name, value in proxy.environment.items():
            environment.setenv(name, value)
        yield proxy


@pytest.fixture
def proxy(all_requests, monkeypatch):
    """The proxy with no faults and no requests yet, and a store that does not wait."""
    monkeypatch.setattr(store_object, "WAITS", (0.0, 0.0))
    all_requests.requests.clear()
    all_requests.headers.clear()
    all_requests.faults.clear()
    return all_requests


@pytest.fixture
def bucket(server) -> Path:
    """The folder that the objects of an empty bucket lie in."""
    return next(bucket for bucket in server.folder.iterdir() if not any(bucket.iterdir()))


@pytest.fixture
def store(proxy, bucket, tmp_path) -> ObjectStore:
    return ObjectStore(f"s3://{bucket.name}/team", Cache(tmp_path / "cache", 10**6))


def objects(bucket: Path) -> set[str]:
    return {str(path.relative_to(bucket / "team")) for path in bucket.rglob("*") if path.is_file()}


def weights_of(store: ObjectStore, finetune_id: str) -> bytes:
    return (store.fetch(finetune_id).folder / "weights.safetensors").read_bytes()


def listings(proxy: s3.Proxy) -> list[str]:
    return [path for method, path in proxy.requests if method == "GET" and "list-type" in path]


def test_what_is_published_is_fetched_without_listing_and_the_next_time_without_asking(store, proxy):
    finetune_id = publish_files(store)
    proxy.requests.clear()
    finetune = store.fetch(finetune_id.upper())
    assert finetune.id == finetune_id and finetune.trigger_word == "TOK" and finetune.base == {"name": "flux-emoji"}
    assert (finetune.folder / "weights.safetensors").read_bytes() == WEIGHTS
    gets = [path.partition("?")[0].rpartition("/")[2] for method, path in proxy.requests if method == "GET"]
    assert gets == [MANIFEST, "weights.safetensors"] and not listings(proxy)
    proxy.requests.clear()
    assert weights_of(store, finetune_id) == WEIGHTS
    assert not proxy.requests


def test_a_file_of_many_parts_arrives(bucket, server, proxy, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)  # the proxy has no hand in it: it is slow
    monkeypatch.setattr(S3FileSystem, "cachable", False)
    store = ObjectStore(f"s3://{bucket.name}/team", Cache(tmp_path / "cache", 10**9))
    content = b"".join(bytes([number]) * (1 << 20) for number in range(101))
    assert weights_of(store, publish_files(store, content)) == content


def test_no_request_carries_a_checksum_that_other_servers_refuse_or_store(store, proxy):
    finetune_id = publish_files(store, b"x" * 6_000_000)  # over s3fs' block of 5 MB
    store.fetch(finetune_id)
    store.delete(finetune_id)
    assert {method for method, _ in proxy.requests} >= {"PUT", "GET", "DELETE"}
    for headers in proxy.headers:
        named = [name for name in headers if name.startswith(("x-amz-checksum", "x-amz-sdk-checksum", "x-amz-trailer"))]
        assert not named and "aws-chunked" not in headers.get("content-encoding", "")


def test_the_manifest_is_written_last(store, proxy):
    publish_files(store)
    puts = [path.partition("?")[0] for method, path in proxy.requests if method == "PUT"]
    assert puts[-2].endswith(MANIFEST) and "/index/" in puts[-1]
    assert sum(path.endswith(MANIFEST) for path in puts) == 1


def test_without_a_manifest_there_is_no_finetune(store, bucket):
    finetune_id = publish_files(store)
    store._files.rm_file(f"{store._root}/{finetune_id}/{MANIFEST}")
    for ask in (store.fetch, store.manifest, store.delete):
        with pytest.raises(ValueError, match="^finetune_id: there is no finetune"):
            ask(finetune_id)


FAULTS_OF_UPLOADS = [s3.server_error, s3.cut_upload, s3.flip_upload, s3.Handler.hang_up]


@pytest.mark.parametrize("fault", FAULTS_OF_UPLOADS)
@pytest.mark.parametrize("path", ["weights.safetensors", MANIFEST, "index"])
def test_an_upload_that_fails_for_a_moment_is_made_again(store, proxy, fault, path):
    if path == "index" and fault in (s3.cut_upload, s3.flip_upload):
        pytest.skip("an index entry has no bytes")
    fault = proxy.fail("PUT", path, fault)
    assert weights_of(store, publish_files(store)) == WEIGHTS
    assert fault.seen == 1


@pytest.mark.parametrize("fault", FAULTS_OF_UPLOADS)
@pytest.mark.parametrize("path", ["weights.safetensors", MANIFEST])
def test_an_upload_that_fails_for_good_leaves_nothing_and_can_be_made_later(store, proxy, bucket, tmp_path, fault, path):
    staged = files_of_a_finetune(tmp_path / "result")
    fault = proxy.fail("PUT", path, fault, times=100)
    with pytest.raises(StoreError, match="^FINETUNE_STORE: s3://test.*/team could not be written: "):
        store.publish(staged, manifest_of())
    assert fault.seen > 1
    assert objects(bucket) == set() and store.listings() == []
    fault.times = 0
    assert weights_of(store, store.put(staged).id) == WEIGHTS


def test_a_server_that_dies_during_an_upload_is_waited_for(store, proxy, server, monkeypatch):
    monkeypatch.setattr(store_object, "WAITS", (0.0, 0.5, 0.5))

    def die(handler: s3.Handler) -> bool:
        server.stop()
        return s3.cut_upload(handler)

    def come_back(handler: s3.Handler) -> bool:
        server.start()
        return False

    proxy.fail("PUT", "weights.safetensors", die)
    proxy.fail("PUT", "weights.safetensors", come_back)
    assert weights_of(store, publish_files(store)) == WEIGHTS


def test_a_server_that_is_gone_for_good_fails_with_one_sentence(store, proxy):
    finetune_id = publish_files(store)
    proxy.fail("GET", "", s3.Handler.hang_up, times=1000)
    for ask in (lambda: store.fetch(finetune_id), lambda: store.manifest(finetune_id), store.listings):
        with pytest.raises(StoreError, match=r"^FINETUNE_STORE: s3://test.*/team could not be (read|listed): [^\n]*$"):
            ask()


@pytest.mark.parametrize("fault", [s3.server_error, s3.cut_download, s3.flip_download, s3.shorten_download])
@pytest.mark.parametrize("path", ["weights.safetensors", MANIFEST])
def test_a_download_that_fails_once_is_made_again(store, proxy, fault, path):
    finetune_id = publish_files(store)
    fault = proxy.fail("GET", path, fault)
    assert weights_of(store, finetune_id) == WEIGHTS
    assert fault.seen == 1


@pytest.mark.parametrize("name", ["weights.safetensors", MANIFEST])
def test_a_file_that_is_damaged_in_the_store_is_fetched_twice_then_refused_by_name(store, proxy, bucket, name):
    finetune_id = publish_files(store)
    damaged = (bucket / "team" / finetune_id / name).read_bytes().replace(b"e", b"E", 1)
    store._files.pipe_file(f"{store._root}/{finetune_id}/{name}", damaged)
    proxy.requests.clear()
    with pytest.raises(ValueError, match=f"^finetune_id: {name} of {finetune_id} is missing or damaged"):
        store.fetch(finetune_id)
    assert sum(f"/{name}" in path for _, path in proxy.requests) == 2
    assert [path.name for path in store._cache.folder.glob("*") if path.name != ".lock"] == []


def test_a_cached_copy_that_was_damaged_is_fetched_again(store):
    finetune_id = publish_files(store)
    folder = store.fetch(finetune_id).folder
    (folder / "weights.safetensors").write_bytes(b"W")
    assert weights_of(store, finetune_id) == WEIGHTS


def test_a_full_disk_fails_with_one_sentence_and_leaves_nothing(store, full_disk):
    store._cache = Cache(full_disk, 10**9)
    large = publish_files(store, bytes(3_000_000))
    with pytest.raises(StoreError, match=r"^FINETUNE_STORE: s3://test.*/team could not be read: .*No space left"):
        store.fetch(large)
    assert [path.name for path in full_disk.iterdir()] == [".lock"]
    assert weights_of(store, publish_files(store)) == WEIGHTS


def test_what_cannot_be_written_is_found_by_the_check(store, proxy, bucket, monkeypatch):
    store.check()
    assert objects(bucket) == set()
    with pytest.raises(StoreError, match="could not be written: The specified bucket does not exist"):
        ObjectStore("s3://no-such-bucket", store._cache).check()
    proxy.requests.clear()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    monkeypatch.setattr(S3FileSystem, "cachable", False)
    with pytest.raises(StoreError, match="could not be written: .*signature"):
        ObjectStore(store.url, store._cache).check()
    assert len(proxy.requests) == 1  # asking again does not help


def test_what_is_deleted_is_gone(store, bucket):
    gone, kept = publish_files(store), publish_files(store)
    store.delete(gone)
    assert [summary.id for summary in store.listings()] == [kept]
    assert not [name for name in objects(bucket) if gone in name] and len(objects(bucket)) == 4
    with pytest.raises(ValueError, match="there is no finetune"):
        store.fetch(gone)


def test_an_upload_that_was_killed_is_finished_under_the_same_id(store, proxy, tmp_path):
    """As when the process dies after the manifest: the finetune is there, and no list says so."""
    staged = files_of_a_finetune(tmp_path / "result")
    published = store.publish(staged, manifest_of())
    store._files.rm_file(f"{store._root}/{index_name(published.manifest)}")
    proxy.requests.clear()
    assert store.put(staged).id == published.id
    assert [summary.id for summary in store.listings()] == [published.id]
    assert sum(method == "PUT" for method, _ in proxy.requests) == 1


def test_ten_thousand_are_listed_in_pages_of_a_thousand_and_one_is_fetched_without(store, proxy, bucket, server):
    finetune_id = publish_files(store, trigger_word="MINE", created="2027-01-01T00:00:00+00:00")
    index = bucket / "team" / "index"
    for number in range(9_999):
        name = index_name({"id": str(uuid.UUID(int=number)), "created": "2026-01-01"} | manifest_of())
        (index / name.removeprefix("index/")).touch()
    server.stop()
    server.start()  # so that it sees them
    proxy.requests.clear()
    listed = store.listings()
    assert len(listed) == 10_000
    assert listed[0] == Listing(finetune_id, "2027-01-01T00:00:00+00:00", "flux-emoji", "MINE")
    assert len(proxy.requests) == len(listings(proxy)) == 10
    proxy.requests.clear()
    assert weights_of(store, finetune_id) == WEIGHTS
    assert len(proxy.requests) == 2 and not listings(proxy)


@pytest.mark.parametrize("word", ["TOK", "a,b/c", "100%", "æøå 猫" * 60])
def test_any_trigger_word_has_its_place_in_the_index(store, word):
    publish_files(store, trigger_word=word)
    (summary,) = store.listings()
    shown = summary.trigger_word
    assert shown == word or (shown.endswith("…") and word.startswith(shown[:-1]) and len(shown) > 10)
    name = index_name({"id": str(uuid.uuid4()), "created": "2026-01-01"} | manifest_of(word))
    assert len(quote(name.removeprefix("index/"), safe=",%").encode()) <= 250


PUBLISH_AND_READ = """
import sys
from pathlib import Path
from finetuner.store.cache import Cache
from finetuner.store.object import ObjectStore

url, folder, mine = sys.argv[1:]
store = ObjectStore(url, Cache(Path(folder, "cache"), 60_000))
seen, number = set(), 0
while len(seen) < 12:
    if number < 6:
        staged = Path(folder, mine, str(number))
        staged.mkdir(parents=True)
        (staged / "weights.safetensors").write_bytes(mine.encode() * 20_000)
        store.publish(staged, {"inputs": {"trigger_word": mine}, "base": {"name": "flux-emoji"}})
        number += 1
    for summary in store.listings():
        content = (store.fetch(summary.id).folder / "weights.safetensors").read_bytes()
        assert content == summary.trigger_word.encode() * 20_000
        seen.add(summary.id)
"""


def test_two_processes_that_publish_and_read_at_once_see_whole_finetunes(store, tmp_path):
    command = [sys.executable, "-c", PUBLISH_AND_READ, store.url, tmp_path]
    runs = [subprocess.Popen([*command, name], cwd=PROJECT) for name in "ab"]
    assert [run.wait(timeout=120) for run in runs] == [0, 0]


def test_another_file_system_that_fsspec_knows_is_a_store_too(tmp_path):
    store = ObjectStore(f"memory://{uuid.uuid4()}", Cache(tmp_path / "cache", 10**6))
    gone, kept = publish_files(store), publish_files(store)
    assert weights_of(store, kept) == WEIGHTS
    store.delete(gone)
    assert [summary.id for summary in store.listings()] == [kept]


def test_the_cache_of_one_store_does_not_serve_another(store, bucket):
    finetune_id = publish_files(store)
    store.fetch(finetune_id)
    with pytest.raises(ValueError, match="there is no finetune"):
        ObjectStore(f"s3://{bucket.name}/others", store._cache).fetch(finetune_id)


def test_the_budget_of_the_cache_is_a_number_of_bytes(monkeypatch):
    monkeypatch.setenv("FINETUNE_CACHE_BYTES", "1000")
    assert cache_budget() == 1000
    monkeypatch.setenv("FINETUNE_CACHE_BYTES", "32 GB")
    with pytest.raises(ValueError, match="^FINETUNE_CACHE_BYTES: '32 GB'"):
        cache_budget()


def test_a_layout_that_a_folder_has_too(store, bucket, tmp_path):
    """A folder copied into a bucket can be served from there."""
    manifest = seal(files_of_a_finetune(bucket / "team" / "new"), manifest_of())
    (bucket / "team" / "new").rename(bucket / "team" / manifest["id"])
    assert weights_of(store, manifest["id"]) == WEIGHTS
    assert json.loads((store.fetch(manifest["id"]).folder / MANIFEST).read_text()) == manifest
