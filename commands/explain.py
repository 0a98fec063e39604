"""`chan explain`: show which part of a picture each word of a caption chose."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from . import options, values
from .terminal import echo, print_json, visible, visible_word, warn_of_unknown

if TYPE_CHECKING:
    from ..runtime.explanation import Explanation


@click.command("explain", short_help="Show which part of a picture each word of a caption chose.")
@click.argument("model", type=values.Gallery(), metavar="BUNDLE|GALLERY")
@click.argument("image", type=values.FileOrId(), metavar="IMAGE|ID")
@click.argument("caption", type=values.TEXT)
@click.option("-o", "--out", type=values.NEW_FILE, help="Draw the explanation to this file (.png or .jpg).")
@click.option("--html", type=values.NEW_FILE, help="Also write the explanation to this file, as a page.")
@options.backbone_options("Network that turns the picture into regions, in place of the backbone of BUNDLE.")
@options.moved_bundle_option
@options.backend_option
@options.device_option
@options.precision_option
@options.json_option
@click.pass_context
def command(
    context: click.Context, model: Path, image: str, caption: str, out: Path | None, html: Path | None,
    backbone: str | None, weights: str, moved: Path | None, backend: str, device: str, precision: str, as_json: bool,
) -> None:  # fmt: skip
    """Score IMAGE with CAPTION, and show the region that each word chose, how similar they are, and the word's share.

    \b
    chan explain BUNDLE picture.jpg "a red apple and a strawberry" --html why.html
    chan explain GALLERY photos/picture.jpg "a red apple and a strawberry"

    With a GALLERY of images, the row of an ID is explained with the bundle that encoded it, at the gallery's precision.
    Rows of region features need no backbone. A region of a grid is shown as its row and its column, counted from 0 at
    the top left; another one as its index. With --out the regions are drawn on the picture. With --html they are a page
    on which each word shows its region.
    """
    from ..runtime.gallery import is_gallery
    from ..runtime.matcher import Matcher

    if out is not None and out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise click.BadParameter(f"the file must end in .png or .jpg, got {visible(out)}", param_hint="--out")
    given = {name for name in context.params if context.get_parameter_source(name) == ParameterSource.COMMANDLINE}
    picture: Path | None
    if is_gallery(model):
        for name in ("backbone", "weights", "precision"):
            if name in given:
                raise click.UsageError(f"--{name} has no effect with a gallery, whose rows are encoded")
        explanation, unknown, picture = _explain_row(model, image, caption, moved, backend, device)
        title = image
        if out is not None and picture is None:
            raise click.UsageError(f"--out: the row {visible(image)} has no picture to draw on; --html needs none")
    else:
        if moved is not None:
            raise click.UsageError("--bundle has no effect without a gallery")
        picture = values.FILE.convert(image, _argument(context, "image"), context)
        title = picture.name
        network = options.open_backbone(context, backbone, weights)
        with Matcher.open(model, backend, precision, backbone=network, device=device) as matcher:
            explanation = matcher.explain(matcher.encode_pictures([picture]), caption)
            unknown = matcher.unknown_words(caption)
    warn_of_unknown(unknown, [match.known for match in explanation.words])
    if out is not None and picture is not None:
        _draw(picture, caption, explanation, out)
    if html is not None:
        from ..runtime.files import write_file
        from ..runtime.pictures.page import render_explanation

        write_file(html, render_explanation(picture, caption, explanation, title=title))
    if as_json:
        print_json({"image": image, "caption": caption, "unknown_words": unknown, **explanation.to_dict()})
        return
    echo(f"score {explanation.score:.4f}")
    words = [visible_word(match.word) for match in explanation.words]
    width = max(map(len, words))
    echo(f"{'word':<{width}}  region  similarity  {'share':>7}")
    for word, match in zip(words, explanation.words, strict=True):
        place = str(match.region)
        if explanation.grid is not None:
            place = "{},{}".format(*divmod(match.region, explanation.grid))
        note = "" if match.known else "  unknown word"
        echo(f"{word:<{width}}  {place:>6}  {match.similarity:>10.4f}  {_percent(match.share):>7}{note}")
    if out is not None:
        echo(f"drawn to {visible(out)}")
    if html is not None:
        echo(f"page: {visible(html)}")


def _explain_row(
    folder: Path, row_id: str, caption: str, moved: Path | None, backend: str, device: str
) -> tuple[Explanation, list[str], Path | None]:
    """The explanation of a gallery's row, the words that the model does not know, and the row's picture."""
    from ..runtime.regions import with_boxes
    from ..runtime.session import open_gallery_with_matcher

    opened = open_gallery_with_matcher(folder, bundle=moved, backend=backend, encoder_device=device)
    with opened as (gallery, matcher):
        if gallery.settings.kind != "images":
            raise click.UsageError(f"{visible(folder)} has captions as its rows: give a gallery of images")
        (row,) = gallery.find([row_id])
        explanation = matcher.explain(with_boxes(gallery.embeddings([row_id]), row.metadata), caption)
        path = row.metadata.get("path")
        return explanation, matcher.unknown_words(caption), None if path is None else Path(str(path))


def _argument(context: click.Context, name: str) -> click.Parameter:
    return next(parameter for parameter in context.command.params if parameter.name == name)


def _percent(share: float) -> str:
    """A share as the page shows it: one that is not 0 is not called 0."""
    if 0 < abs(share) < 0.001:
        return "< 0.1 %" if share > 0 else "> -0.1 %"
    return f"{share:.1%}".replace("%", " %")


def _draw(image: Path, caption: str, explanation: Explanation, out: Path) -> None:
    from ..runtime.files import atomic_file
    from ..runtime.pictures.draw import draw_explanation

    sheet = draw_explanation(image, caption, explanation)
    with atomic_file(out) as beside:
        sheet.save(beside)
