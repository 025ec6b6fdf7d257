"""Class and split folders: the same images, labels, splits and errors from a folder and from an object store."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tl.data.manifests import read_images
from tl.errors import DataError
from tl.runtime.sources import remote

KEYS = {"aws_access_key_id": "key", "aws_secret_access_key": "hidden"}
Store = Callable[[str, list[str]], str]


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """The client of an S3 server with the bucket `sets`, which is the one of this process."""
    server_module = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    import boto3

    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in KEYS.items():
            patch.setenv(name.upper(), value)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        remote._open_system.cache_clear()
        client = boto3.client("s3")
        client.create_bucket(Bucket="sets")
        yield client
        client.close()
    remote._open_system.cache_clear()
    server.stop()


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """Puts empty files under a name, and returns the path or the address of their folder."""
    if request.param == "folder":

        def put(name: str, files: list[str]) -> str:
            for file in files:
                (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / name / file).touch()
            return str(tmp_path / name)

        return put
    client = request.getfixturevalue("client")
    prefix = request.node.name.split("[")[0]

    def upload(name: str, files: list[str]) -> str:
        for file in files:
            client.put_object(Bucket="sets", Key=f"{prefix}/{name}/{file}", Body=b"")
        return f"s3://sets/{prefix}/{name}"

    return upload


def found_in(root: str, heard: list[str] | None = None) -> list[tuple[str, str, str]]:
    images = read_images(root, say=(heard if heard is not None else []).append)
    assert [image.path for image in images] == [f"{root}/{image.name}" for image in images]
    return [(image.name, image.label, image.split) for image in images]


def test_read_images__classes(store: Store) -> None:
    files = ["b/0.png", "a/deep/1.png", "a/notes.txt", "a/.hidden/2.png", ".cache/a/0.png", "preview.png", "a/.3.png"]
    root, heard = store("d", files), []  # type: ignore[var-annotated]
    assert found_in(root, heard) == [("a/deep/1.png", "a", ""), ("b/0.png", "b", "")]
    assert heard == [f"{root}: skipped 2 hidden files and 2 that are not images, by name or location"]


def test_read_images__splits(store: Store) -> None:
    root = store("d", ["preview.png", *(f"{split}/{name}/0.png" for split in ("Valid", "train") for name in "ab")])
    assert found_in(root) == [
        ("train/a/0.png", "a", "train"),
        ("train/b/0.png", "b", "train"),
        ("Valid/a/0.png", "a", "val"),
        ("Valid/b/0.png", "b", "val"),
    ]


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        (["test/a/0.png", "val/a/0.png"], "'test' is probably a split, not a class, but there is no folder train"),
        (["test/0.png", "a/0.png"], "'test' is probably a split, not a class, but there is no folder train"),
        (["data/Train/a/0.png", "data/val/a/0.png"], "the split folders are one level below, in .*/data: use that"),
        (["train/a/0.png", "val/a/0.png", "validation/b/0.png"], "'val' and 'validation' are both the same split"),
        (["train/a/0.png", "photos/a/0.png"], "unexpected folder 'photos': expected only train/, val/ and test/"),
        (["train/0.png", "val/a/0.png"], "/train: contains no class folders"),
        (["0.png", "1.png"], "d: contains no class folders"),
        (["a/0.png", "b/notes.txt"], "/b: this class folder contains no images: add images or remove it"),
    ],
)
def test_read_images__folders_that_cannot_be_meant(store: Store, files: list[str], fault: str, tmp_path: Path) -> None:
    # Each case has a name of its own: objects stay in the bucket.
    root = store(f"{'-'.join(files).replace('/', '_')}/d", files)
    with pytest.raises(DataError, match=fault):
        found_in(root)
