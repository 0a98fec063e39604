"""From sources to the pictures of each split with their captions, and a list of everything that was left out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from ..counts import counted
from ..errors import InputError
from ..progress import Progress
from ..skipped import Skipped, SkippedItem
from .alike import alike
from .check import Checked, check_pictures
from .entries import Entry, Stray, clean, has_word
from .find import PictureFolders
from .splits import SPLITS, Shares

"""Called with how many pictures were read, and how many there are."""

# What a report calls the items that were left out or joined, in the order of the work.
MISSING = "pictures that are missing"
UNREADABLE = "pictures that cannot be read"
STRAY = "captions without a picture"
WORDLESS = "captions without a word"
REPEATED = "captions that repeat one of the same picture"
SAME = "pictures that equal another one of their split, with which they are joined"
LEAKED = "pictures that equal one of another split, from which they are left out"
SILENT = "pictures without a caption"


@dataclass
class OwnPicture:
    """A picture with its captions.

    Attributes:
        file: absolute path.
        image_id: its id, unique.
        captions: cleaned, each once.
        split: train, dev or test.
        checked: what was read of its file.
    """

    file: Path
    image_id: str
    captions: list[str]
    split: str
    checked: Checked


@dataclass
class Gathered:
    """What goes into a data folder.

    Attributes:
        pictures: in the order of the sources; where all ids are numbers, in ascending order.
        notes: what was left out or joined, by kind.
        split_by: "the source", or how the splits were made.
        alike: pictures of dev and test that look like one of train. They are kept.
    """

    pictures: list[OwnPicture]
    notes: dict[str, list[SkippedItem]]
    split_by: str
    alike: list[SkippedItem]

    def of(self, split: str) -> list[OwnPicture]:
        """The pictures of a split."""
        return [picture for picture in self.pictures if picture.split == split]


@dataclass
class _Listed:
    """A picture as the sources name it: its file, and every caption with its place."""

    where: str
    file: Path
    below: str
    image_id: str | None
    split: str | None
    captions: list[tuple[str, str]] = field(default_factory=list)
    checked: Checked | None = None


class _Notes:
    """What was left out or joined. Pictures that are missing or unreadable count toward the limit."""

    def __init__(self, max_bad: int) -> None:
        self._bad = Skipped(max_bad)
        self.kinds: dict[str, list[SkippedItem]] = {}

    def add(self, kind: str, item: str, reason: str) -> None:
        note = SkippedItem(item, reason)
        self.kinds.setdefault(kind, []).append(note)
        if kind in (MISSING, UNREADABLE):
            self._bad.add(note)


def gather(
    sources: Iterable[tuple[PictureFolders, Iterable[Entry | Stray]]],
    shares: Shares,
    *,
    max_bad: int,
    progress: Progress = lambda done, total: None,
) -> Gathered:
    """Find, read, join and split the pictures of sources.

    Pictures of equal content become one, with the captions of all. Where sources name splits and equal pictures are in
    several of them, the picture stays in the one that is evaluated (test before dev before train), so that nothing is
    trained on that is evaluated.

    Args:
        sources: each with the folders of its pictures.
        shares: of the splits, where the sources name none.
        max_bad: how many pictures may be missing or unreadable.
        progress: follows the reading of the pictures.

    Raises:
        InputError: a source breaks its form, contradicts itself, or names splits for some pictures only; more than
            `max_bad` pictures cannot be used; or a split would be empty.
    """
    notes = _Notes(max_bad)
    listed = _list(sources, notes)
    if not listed:
        raise InputError(f"the sources must name at least one picture that is there, got none{_first(notes)}")
    for done, (item, found) in enumerate(zip(listed, check_pictures([one.file for one in listed]), strict=True), 1):
        if isinstance(found, InputError):
            notes.add(UNREADABLE, str(item.file), str(found))
        else:
            item.checked = found
        progress(done, len(listed))
    readable = [item for item in listed if item.checked is not None]
    given = _check_splits(readable)
    pictures = [picture for group in _groups(readable) for picture in _join(group, shares, notes)]
    if not pictures:
        raise InputError(f"the sources must name at least one picture with a caption, got none{_first(notes)}")
    if all(picture.image_id.isascii() and picture.image_id.isdigit() for picture in pictures):
        pictures.sort(key=lambda picture: int(picture.image_id))
    _check_ids(pictures)
    _check_sizes(pictures, shares, given)
    how = "the source" if given else f"content (dev {shares.dev:g}, test {shares.test:g}, seed {shares.seed})"
    return Gathered(pictures, notes.kinds, how, list(_alike(pictures)))


def _alike(pictures: Sequence[OwnPicture]) -> Iterator[SkippedItem]:
    train = [picture for picture in pictures if picture.split == "train"]
    others = [picture for picture in pictures if picture.split != "train"]
    for one, other in alike([picture.checked for picture in others], [picture.checked for picture in train]):
        reason = f"it is in {others[one].split} and looks like {train[other].image_id} of train"
        yield SkippedItem(others[one].image_id, reason)


def _list(sources: Iterable[tuple[PictureFolders, Iterable[Entry | Stray]]], notes: _Notes) -> list[_Listed]:
    """The files that the sources name, each once, in order."""
    listed: dict[Path, _Listed] = {}
    lost: set[tuple[str, ...]] = set()
    for folders, entries in sources:
        for entry in entries:
            if isinstance(entry, Stray):
                notes.add(STRAY, entry.where, entry.reason)
                continue
            if entry.names in lost:
                notes.add(STRAY, entry.where, "its picture is missing")
                continue
            try:
                file, below = folders.find(entry.names)
            except InputError as error:
                lost.add(entry.names)
                notes.add(MISSING, f"{entry.names[0]} ({entry.where})", str(error))
                continue
            item = listed.setdefault(file, _Listed(entry.where, file, below, entry.image_id, entry.split))
            if (item.split, item.image_id) != (entry.split, entry.image_id):
                raise InputError(
                    f"{entry.where}: a picture must have one split and one id, got {entry.split!r} and "
                    f"{entry.image_id!r} for {below}, which has {item.split!r} and {item.image_id!r} in {item.where}"
                )
            item.captions += [(caption, entry.where) for caption in entry.captions]
    return list(listed.values())


def _check_splits(listed: Sequence[_Listed]) -> bool:
    """Whether the sources name the splits; InputError where they do so for some pictures only."""
    without = [item for item in listed if item.split is None]
    if without and len(without) < len(listed):
        raise InputError(
            f"{without[0].where}: every picture must have a split, or none, got none for {len(without)} of "
            f"{counted(len(listed), 'picture')}, the first of them {without[0].below}"
        )
    return not without


def _groups(listed: Sequence[_Listed]) -> Iterable[list[_Listed]]:
    """Pictures of equal pixels together."""
    groups: dict[str, list[_Listed]] = {}
    for item in listed:
        assert item.checked is not None
        groups.setdefault(item.checked.pixels, []).append(item)
    return groups.values()


def _join(group: list[_Listed], shares: Shares, notes: _Notes) -> list[OwnPicture]:
    """The one picture that equal ones become, or none where they have no caption."""
    splits = {item.split for item in group}
    if None in splits:
        split = shares.split_of(min(item.checked.content for item in group if item.checked is not None))
        kept = group
    else:
        split = next(name for name in reversed(SPLITS) if name in splits)
        kept = [item for item in group if item.split == split]
        for item in group:
            if item.split != split:
                its = counted(len(item.captions), "caption")
                reason = f"it equals {kept[0].below} of {split}, so it and its {its} are not in"
                notes.add(LEAKED, item.below, f"{reason} {item.split}")
    first, *others = kept
    for item in others:
        notes.add(SAME, item.below, f"it equals {first.below}, which has its captions now")
    captions: dict[str, None] = {}
    for written, where in (caption for item in kept for caption in item.captions):
        caption = clean(written)
        if not has_word(caption):
            notes.add(WORDLESS, where, f"it is {caption!r}")
        elif caption in captions:
            notes.add(REPEATED, where, f"{first.below} has the caption {caption!r} already")
        else:
            captions[caption] = None
    if not captions:
        notes.add(SILENT, first.below, "it has no caption with a word")
        return []
    assert first.checked is not None
    return [OwnPicture(first.file, first.image_id or _id_of(first.below), list(captions), split, first.checked)]


def _id_of(below: str) -> str:
    """A path as an id that a line of a text file can hold; what it cannot is escaped as in addresses."""
    plain = below.isprintable() and below == below.strip() and "%" not in below and not below.startswith(("b'", 'b"'))
    return below if plain else quote(below)


def _check_ids(pictures: Sequence[OwnPicture]) -> None:
    owners: dict[str, OwnPicture] = {}
    for picture in pictures:
        other = owners.setdefault(picture.image_id, picture)
        if other is not picture:
            raise InputError(
                f"each picture must have an id of its own, got {picture.image_id!r} for {other.file} and "
                f"{picture.file}: give one folder above both with --pictures, and paths below it"
            )


def _check_sizes(pictures: Sequence[OwnPicture], shares: Shares, given: bool) -> None:
    """InputError for a split that should have pictures and has none."""
    counts = {split: sum(picture.split == split for picture in pictures) for split in SPLITS}
    if given:
        return
    wanted = {"train": 1.0, "dev": shares.dev, "test": shares.test}
    empty = [split for split in SPLITS if wanted[split] and not counts[split]]
    if empty:
        raise InputError(
            f"{' and '.join(empty)} got none of the {counted(len(pictures), 'picture')}: name splits in the source, "
            "or choose "
            "other shares or another seed with --dev-share, --test-share and --seed (a share of 0 makes no such split)"
        )


def _first(notes: _Notes) -> str:
    for kind, items in notes.kinds.items():
        return f"; {kind}: {len(items)}, the first: {items[0].item}: {items[0].reason}"
    return ""
