"""A process that searches shards: it answers each question from the commit that the question names."""

from __future__ import annotations

import json
import logging
import os
import threading
from dataclasses import replace
from pathlib import Path

from ..runtime.errors import GalleryError
from ..runtime.gallery.sharded.manifest import ShardEntry
from ..runtime.gallery.sharded.part import ShardPart, open_scanner
from ..runtime.gallery.where import Filter
from .questions import Answer, Broken, Description, FindRows, Found, Gone, Question, Rows, SearchShard

_log = logging.getLogger(__name__)
_KEPT = 2  # commits that stay open: searches of the last one end while the next one is asked for


class ShardHost:
    """Opens shards of a gallery as they are asked for. Any number of threads may use one.

    It keeps no list of shards and does not follow commits: whoever asks names both, so all hosts of a gallery answer
    one search from one commit.

    Args:
        folder: the gallery in shards, as this machine sees it.
        threads: CPU threads for scans; None for every core.

    Raises:
        GalleryError, GalleryCorrupt: there is no gallery in shards, or its manifest is damaged.
    """

    def __init__(self, folder: str | Path, threads: int | None = None) -> None:
        self._folder = Path(folder).absolute()
        self._scanner = open_scanner(self._folder, threads)
        self._parts: dict[ShardEntry, ShardPart] = {}
        self._asked: dict[ShardEntry, int] = {}  # the generation that a part was last asked for
        self._recent: list[int] = []  # generations that were asked for last, the newest question's at the end
        self._lock = threading.Lock()

    def close(self) -> None:
        """End the threads and let the files go."""
        with self._lock:
            for part in self._parts.values():
                part.close()
            self._parts.clear()
        self._scanner.close()

    def answer(self, question: Question) -> Answer:
        """Do what a question asks; a shard that cannot be read is an answer, too."""
        task = question.task
        try:
            part = self._part(question)
            if isinstance(task, SearchShard):
                return _search(part, task)
            if isinstance(task, FindRows):
                return _find(part, task)
            prepared = part.prepared
            return Description(self._scanner.name, os.getpid(), None if prepared is None else prepared.describe())
        except FileNotFoundError:
            return Gone()
        except GalleryError as error:
            _log.error("%s: %s", question.shard.name, error)
            return Broken(str(error).replace(f"{self._folder}/", ""))

    def _part(self, question: Question) -> ShardPart:
        """The shard of a question at its commit; raises as `ShardPart.open_at`."""
        entry = question.shard
        with self._lock:
            if entry not in self._parts:
                before = next((part for old, part in reversed(self._parts.items()) if old.name == entry.name), None)
                self._parts[entry] = ShardPart.open_at(self._folder, entry, self._scanner, before)
            found, now = self._parts[entry], question.generation
            self._asked[entry] = now
            # by the order of the questions, because a gallery that is restored from a copy goes back to an older one
            self._recent = [*(one for one in self._recent if one != now), now][-_KEPT:]
            for old in [old for old, generation in self._asked.items() if generation not in self._recent]:
                del self._parts[old], self._asked[old]  # its files are let go when the last search of it ends
            return found


def _search(part: ShardPart, task: SearchShard) -> Found:
    """Search a shard; a filter's keys are checked where those of all shards are known."""
    condition = None if task.where is None else Filter.parse(json.loads(task.where), task.hidden)
    results = part.search(
        task.queries,
        task.k,
        ids=task.ids,
        where=None if condition is None else replace(condition, keys=()),
        same_kind=True,
        at_least=task.at_least,
    )
    return Found(tuple(results), None if condition is None else part.keys(condition))


def _find(part: ShardPart, task: FindRows) -> Rows:
    rows = part.find_some(task.ids)
    embeddings = {id: part.embeddings([id]) for id in rows} if task.embeddings else {}
    return Rows(rows, embeddings)
