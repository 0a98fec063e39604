"""Object storage: the few operations that a gallery needs, with errors that name the address.

obstore does the work. It speaks to S3, Google Cloud Storage, Azure, HTTP and folders without further packages, while
s3fs of fsspec pins the version of botocore (fsspec/s3fs issues 357 and 528), which boto3 beside it then conflicts with.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from ..runtime.errors import GalleryError, InputError
from ..runtime.extras import needs

_SCHEMES = ("s3", "gs", "az", "file")
_RETRIES: Any = {"max_retries": 5, "retry_timeout": timedelta(seconds=60)}


# Where a machine in a cloud asks for the credentials of its role; obstore does so when the environment has none.
_ROLES = re.compile(r"//(169\.254\.(169\.254|170\.2)|metadata(\.google\.internal)?)[:/]")


_KEYS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_SERVICE_ACCOUNT",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}


def is_url(text: str) -> bool:
    """Whether a text is an address, not a path."""
    return re.match(r"[a-z][a-z0-9+.-]*://", text) is not None


@dataclass(frozen=True)
class StoredObject:
    """An object: its name below the address, its bytes, when it was written, in nanoseconds, and its ETag."""

    name: str
    size: int
    mtime_ns: int
    etag: str


class Remote:
    """Objects below an address.

    Credentials and endpoints come from the environment, as obstore reads them: AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL,
    AWS_ALLOW_HTTP, AWS_VIRTUAL_HOSTED_STYLE_REQUEST, GOOGLE_SERVICE_ACCOUNT and so on.

    Args:
        url: `s3://`, `gs://`, `az://` or `file:///`.
        create: whether a folder that is missing is made; only for what writes.

    Raises:
        InputError: it is none of these.
        MissingExtra: obstore is not installed.
        GalleryError: its settings in the environment are wrong, or a folder is missing.
    """

    def __init__(self, url: str, create: bool = False) -> None:
        scheme = url.partition("://")[0]
        if not is_url(url) or scheme not in _SCHEMES:
            raise InputError(f"url must begin with {', '.join(f'{name}://' for name in _SCHEMES)}, got {url}")
        if scheme == "file" and not url.startswith("file:///"):
            raise InputError(f"url must have an absolute path, as in file:///mnt/gallery, got {url}")
        self.url = url.rstrip("/")
        with needs("obstore", "object storage"):
            import obstore
            from obstore.store import from_url
        self._obstore = obstore
        with self._errors("opened"):
            if scheme == "file":
                if not create and not Path(url2pathname(urlsplit(self.url).path)).is_dir():
                    raise GalleryError(f"{self.url} cannot be opened: there is no such folder")
                self._store = from_url(self.url, mkdir=create)
            else:
                options: Any = {"checksum_algorithm": "SHA256"} if scheme == "s3" else {}  # it checks what it receives
                self._store = from_url(self.url, retry_config=_RETRIES, **options)

    def put(self, name: str, data: bytes) -> None:
        """Write an object whole: nobody sees a part of it."""
        with self._errors("written", name):
            self._obstore.put(self._store, name, data, use_multipart=False)

    def replace(self, name: str, data: bytes, tag: str | None) -> bool:
        """Write an object whole if it is still the one of a tag (`get_tagged`); with None, if there still is none.

        Returns:
            Whether it was written; if not, another process was faster. Files have no such condition: of two processes
            that replace one at the same moment, the last one counts.
        """
        mode: Any = "create" if tag is None else {"e_tag": tag}
        if tag is not None and self.url.startswith("file:"):
            mode = "overwrite"
        refused = self._obstore.exceptions.PreconditionError, self._obstore.exceptions.AlreadyExistsError
        with self._errors("written", name):
            try:
                self._obstore.put(self._store, name, data, use_multipart=False, mode=mode)
            except refused:
                return False
        return True

    def get(self, name: str) -> bytes | None:
        """An object; None where there is none."""
        found = self.get_tagged(name)
        return None if found is None else found[0]

    def get_tagged(self, name: str) -> tuple[bytes, str | None] | None:
        """An object and what tells it from the next one of its name; None where there is none."""
        try:
            with self._errors("read", name):
                found = self._obstore.get(self._store, name)
                return bytes(found.bytes()), found.meta["e_tag"]
        except FileNotFoundError:
            return None

    def sizes(self, folder: str) -> dict[str, int]:
        """Name -> bytes of the objects below a folder."""
        with self._errors("listed", folder):
            found = [meta for batch in self._obstore.list(self._store, folder) for meta in batch]
        return {meta["path"].rpartition("/")[2]: meta["size"] for meta in found}

    def objects(self) -> list[StoredObject]:
        """All objects below the address, by name.

        Raises:
            GalleryError: the storage refuses.
        """
        with self._errors("listed"):
            found = [meta for batch in self._obstore.list(self._store) for meta in batch]
        objects = [
            StoredObject(
                meta["path"], meta["size"], int(meta["last_modified"].timestamp() * 1e6) * 1000, meta["e_tag"] or ""
            )
            for meta in found
        ]
        return sorted(objects, key=lambda stored: stored.name)

    def delete(self, names: Iterable[str]) -> None:
        """Remove objects; those that are not there are no error."""
        for name in names:
            with self._errors("removed", name):
                try:
                    self._obstore.delete(self._store, name)
                except FileNotFoundError:
                    continue

    @contextmanager
    def _errors(self, what: str, name: str = "") -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            if what == "read":
                raise
            raise GalleryError(f"{self.url} cannot be {what}: there is no such bucket") from None
        except (OSError, self._obstore.exceptions.BaseError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            if "NoSuchBucket" in str(error):
                reason = "there is no such bucket"
            elif _ROLES.search(reason) and self.url.partition(":")[0] in _KEYS:
                reason = f"no credentials, set {_KEYS[self.url.partition(':')[0]]} ({reason})"
            place = f"{self.url}/{name}" if name else self.url
            raise GalleryError(f"{place} cannot be {what}: {reason}") from error
