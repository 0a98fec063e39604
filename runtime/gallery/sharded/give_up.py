"""Giving up shards of which the commit that counts cannot be read any more."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from ...errors import GalleryCorrupt
from ..store.files import SEGMENTS
from ..store.lock import WriterLock
from ..store.mapping import describe
from ..store.refusals import write_errors
from ..view import name_missing
from .manifest import ShardManifest, read_manifest, read_pinned, write_manifest


def give_up_missing(folder: Path, damaged: str) -> list[str]:
    """Take the shards that are missing, or whose catalogue or files are, out of a gallery, in one commit.

    A damaged catalogue counts as a missing one.

    What is left of such a shard is moved to a folder of the gallery, because the next writer removes every shard that
    no commit names.

    Args:
        folder: the gallery in shards.
        damaged: name of the folder for what is left.

    Returns:
        Each shard that was given up, with its rows and why; nothing was changed where there is none.

    Raises:
        GalleryLocked: a writer is at work.
        GalleryCorrupt: the manifest is damaged, or no shard can be read.
        GalleryError: there is no gallery in shards, or it cannot be written.
    """
    lock = WriterLock(folder)
    try:
        _, manifest = read_manifest(folder)
        problems = _problems(folder, manifest)
        if not problems:
            return []
        if len(problems) == len(manifest.shards):
            raise GalleryCorrupt(f"{folder}: no shard can be read, so there is nothing to keep")
        with write_errors(folder):
            _give_up(folder, manifest, problems, damaged)
        return name_missing((shard, problems.get(shard.name)) for shard in manifest.shards)
    finally:
        lock.release()


def _problems(folder: Path, manifest: ShardManifest) -> dict[str, str]:
    """Why each shard whose commit cannot be read cannot, by the shard's name."""
    problems = {}
    for shard in manifest.shards:
        segments = folder / shard.name / SEGMENTS
        try:
            read_pinned(folder / shard.name, shard.header)
            if not os.path.lexists(segments):
                problems[shard.name] = f"{segments} is missing"
        except FileNotFoundError:
            there = (folder / shard.name).is_dir()
            problems[shard.name] = "it has another commit" if there else f"{folder / shard.name} is missing"
        except GalleryCorrupt as error:
            problems[shard.name] = describe(error)
    return problems


def _give_up(folder: Path, manifest: ShardManifest, names: Collection[str], damaged: str) -> None:
    """Commit the manifest without some shards, and move what is left of them; OSError, and all is as it was."""
    left = [name for name in names if (folder / name).is_dir()]
    kept = tuple(shard for shard in manifest.shards if shard.name not in names)
    try:
        for name in left:
            (folder / damaged).mkdir(exist_ok=True)
            os.rename(folder / name, folder / damaged / name)
        write_manifest(folder, replace(manifest, generation=manifest.generation + 1, shards=kept))
    except BaseException:
        if read_manifest(folder)[1] == manifest:
            for name in left:
                if not (folder / name).exists():
                    os.rename(folder / damaged / name, folder / name)
        raise
