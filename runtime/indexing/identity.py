"""Which rows of a gallery are which items of a source: by place and content, not by position.

A row's id is `ROOT/NAME`: the name of the folder that was indexed, and the item's path below it. Beside the metadata of
its caller each row keeps where it came from (`source`): size and time of its file, and the SHA-256 of its content. So a
second run adds what is new, encodes again what changed, renames what moved, and knows what is gone; a folder that was
moved as a whole keeps its ids.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ChanError
from ..gallery.store.rows import Relabel

SOURCE = "source"  # key of the metadata that this module keeps
_SOURCE_TYPES = {"root": str, "size": int, "mtime_ns": int, "sha256": str}


@dataclass(frozen=True)
class Origin:
    """Where one item of a source lies, and how to tell whether it changed.

    Attributes:
        root: the folder that was indexed, absolute.
        name: the item's path below the root, with slashes.
        path: the item's own file, absolute; None for an item that is a row of a larger file.
        size, mtime_ns: of the file that holds the item.
        digest: computes the SHA-256 of the item's content, in hexadecimal; OSError where it cannot be read.
        version: changes with the content, where a storage has such a thing: the times of object storage are in seconds.
    """

    root: Path
    name: str
    path: Path | None
    size: int
    mtime_ns: int
    digest: Callable[[], str]
    version: str = ""


@dataclass(frozen=True)
class Scope:
    """What a source lists completely: all below a folder, or only what its names begin with."""

    root: Path
    below: str = ""


@dataclass(frozen=True)
class Known:
    """What a gallery has: a row's id and its metadata."""

    id: str
    metadata: Mapping[str, Any]


@dataclass
class Plan:
    """What a run over a source has to do. Numbers are those of the source's items.

    Attributes:
        ids: the id of each item.
        metadata: the metadata of each item, `source` included; its `sha256` may be missing for items to encode.
        added: items that the gallery does not have.
        refreshed: items whose content changed since it was encoded.
        moved: rows of items that lie elsewhere now, with the same content.
        touched: rows whose file has another size or time, whose root has another place, or which have other metadata,
            with the same content.
        relabeled: how many of `touched` have other metadata.
        kept: ids of the rows that keep their vectors: unchanged, moved and touched ones.
        missing: ids of the rows of these roots whose items are gone.
        roots: name -> folder of every root of the gallery, as it will be.
    """

    ids: list[str] = field(default_factory=list)
    metadata: list[dict[str, Any]] = field(default_factory=list)
    added: list[int] = field(default_factory=list)
    refreshed: list[int] = field(default_factory=list)
    moved: list[Relabel] = field(default_factory=list)
    touched: list[Relabel] = field(default_factory=list)
    relabeled: int = 0
    kept: set[str] = field(default_factory=set)
    missing: list[str] = field(default_factory=list)
    roots: dict[str, str] = field(default_factory=dict)

    @property
    def relabels(self) -> list[Relabel]:
        """What the rows become that keep their vectors and nothing else."""
        return [*self.moved, *self.touched]

    def to_encode(self, replace: bool) -> tuple[list[int], set[int]]:
        """The items to encode, in order, and those of them that the gallery has; with `replace` all that it has."""
        old = set(self.refreshed)
        if replace:
            old.update(item for item, id in enumerate(self.ids) if id in self.kept)
        return sorted({*self.added, *old}), old


def add_digest(origin: Origin, source: dict[str, Any]) -> bool:
    """Put the digest of an item's content into `source` unless it is there already.

    Returns:
        False where the item cannot be read, which encoding it will report. The digest is empty then, and no content's.
    """
    if not source.get("sha256"):
        try:
            source["sha256"] = origin.digest()
        except (OSError, ChanError):
            source["sha256"] = ""
    return bool(source["sha256"])


def same_content(origin: Origin, source: dict[str, Any], old: Mapping[str, Any] | None) -> bool:
    """Whether an item is what a row was encoded from; puts the digest of its content into `source`.

    Args:
        origin: of the item.
        source: of the item, as its row will keep it.
        old: the same of the row as it is; None where it has none, and then an item that can be read is the row's.
    """
    now = origin.size, origin.mtime_ns, origin.version
    if old is not None and (old["size"], old["mtime_ns"], old.get("version", "")) == now:
        source["sha256"] = old["sha256"]
        return True
    return add_digest(origin, source) and (old is None or old["sha256"] == source["sha256"])


def compare(
    origins: Sequence[Origin],
    metadata: Sequence[Mapping[str, Any]],
    known: Iterable[Known],
    roots: Mapping[str, str],
    whole: Collection[Scope] = (),
) -> Plan:
    """Compare a source with the rows of a gallery.

    Args:
        origins: of the source's items.
        metadata: of the items, without `source`.
        known: the gallery's rows.
        roots: name -> folder of the roots that the gallery knows.
        whole: what the source lists completely, so that other rows there are missing.
    """
    return _Planner(known, roots).run(origins, metadata, whole)


class _Planner:
    """Compares one source with one gallery."""

    def __init__(self, known: Iterable[Known], roots: Mapping[str, str]) -> None:
        self._plan = Plan(roots=dict(roots))
        self._by_id = {row.id: row for row in known}
        self._by_path = {path: row for row in self._by_id.values() if isinstance(path := row.metadata.get("path"), str)}

    def run(self, origins: Sequence[Origin], metadata: Sequence[Mapping[str, Any]], whole: Collection[Scope]) -> Plan:
        plan = self._plan
        roots = dict.fromkeys([*(scope.root for scope in whole), *(origin.root for origin in origins)])
        places = {root: self._place(root) for root in roots}
        found = [self._row_of(o, places[o.root], m) for o, m in zip(origins, metadata, strict=True)]
        seen = {row.id for row in found if row is not None}
        listed = [(scope, *places[scope.root]) for scope in whole]
        gone = {
            row.id: row
            for row in self._by_id.values()
            if row.id not in seen and any(_is_below(row, scope, name, prefix) for scope, name, prefix in listed)
        }
        comparable = [row for row in gone.values() if _root_of(row) is not None]
        by_digest: dict[str, list[Known]] = {}
        for left in comparable:
            by_digest.setdefault(left.metadata[SOURCE]["sha256"], []).append(left)
        sizes = {row.metadata[SOURCE]["size"] for row in comparable}
        taken = set(self._by_id)
        for item, (origin, row) in enumerate(zip(origins, found, strict=True)):
            root, prefix = places[origin.root]
            source: dict[str, Any] = {"root": root, "size": origin.size, "mtime_ns": origin.mtime_ns}
            if origin.version:
                source["version"] = origin.version
            details = {**({} if row is None else row.metadata), **metadata[item], SOURCE: source}
            if row is not None:
                id = row.id
                self._compare(item, origin, row, details)
            else:
                id = _free(f"{root}/{prefix}{origin.name}", taken)
                same: list[Known] = []
                if origin.size in sizes and add_digest(origin, source):
                    same = by_digest.get(source["sha256"], [])
                if not same:
                    plan.added.append(item)
                else:
                    moved = same.pop(0)
                    del gone[moved.id]
                    details = {**moved.metadata, **details}
                    plan.moved.append(Relabel(moved.id, id, details))
                    plan.kept.add(id)
            taken.add(id)
            plan.ids.append(id)
            plan.metadata.append(details)
        plan.missing = list(gone)
        return plan

    def _place(self, root: Path) -> tuple[str, str]:
        """The name of the root that holds a folder, and the folder's path below it, with a slash at the end.

        The root is the innermost known one, one of the folder's name which was moved here, or a new one.
        """
        roots = self._plan.roots
        holding = [name for name, folder in roots.items() if root.is_relative_to(folder)]
        if holding:
            name = max(holding, key=lambda name: len(roots[name]))
            below = root.relative_to(roots[name]).as_posix()
            return name, "" if below == "." else f"{below}/"
        name = root.name or "root"
        if name in roots and (_is_address(roots[name]) or Path(roots[name]).exists()):
            name = _free(name, set(roots))
        roots[name] = str(root)
        return name, ""

    def _row_of(self, origin: Origin, place: tuple[str, str], metadata: Mapping[str, Any]) -> Known | None:
        """The gallery's row of an item: of the same file whatever its id, or of the same place below the root.

        A version that kept no `source` named the rows of a data folder by their place alone; such a row is the item's
        if all its metadata is.
        """
        row = None if origin.path is None else self._by_path.get(str(origin.path))
        if row is None:
            root, prefix = place
            row = self._by_id.get(f"{root}/{prefix}{origin.name}")
            if row is not None and _root_of(row) != root:
                row = None
        if row is None:
            row = self._by_id.get(origin.name)
            if row is not None and (SOURCE in row.metadata or dict(row.metadata) != dict(metadata)):
                row = None
        return row

    def _compare(self, item: int, origin: Origin, row: Known, details: dict[str, Any]) -> None:
        plan = self._plan
        old = row.metadata[SOURCE] if _root_of(row) is not None else None
        source = details[SOURCE]
        if not same_content(origin, source, old):
            plan.refreshed.append(item)
            return
        plan.kept.add(row.id)
        if details != dict(row.metadata):
            plan.touched.append(Relabel(row.id, row.id, details))
            plan.relabeled += details | _OF_FILE != dict(row.metadata) | _OF_FILE


_OF_FILE = {"path": None, SOURCE: None}  # what this module and sources say of a row's file, in place of its user


def _is_address(root: str) -> bool:
    """Whether a root lies in object storage; a path has lost a slash of its address."""
    return re.match(r"[a-z][a-z0-9+.-]*:/", root) is not None


def _is_below(row: Known, scope: Scope, root: str, prefix: str) -> bool:
    """Whether a row lies where the source lists everything."""
    if _root_of(row) == root and row.id.startswith(f"{root}/{prefix}{scope.below}"):
        return True
    path = row.metadata.get("path")
    return not scope.below and isinstance(path, str) and Path(path).is_relative_to(scope.root)


def _root_of(row: Known) -> str | None:
    """The name of the root that a row came from; None for a row whose `source` this module did not make."""
    source = row.metadata.get(SOURCE)
    if not isinstance(source, Mapping):
        return None
    made = all(isinstance(source.get(name), kind) for name, kind in _SOURCE_TYPES.items())
    return str(source["root"]) if made else None


def _free(name: str, taken: set[str]) -> str:
    """The name, or NAME-2, NAME-3, ... where it is taken."""
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}-{number}"
    return free
