"""`chan explain`: show which part of a picture each word of a caption chose."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import options, values
from .terminal import echo, print_json, visible, visible_word, warn_of_unknown

if TYPE_CHECKING:
    from ..runtime.explanation import Explanation


@click.command("explain", short_help="Show which part of a picture each word of a caption chose.")
@options.bundle_argument
@click.argument("image", type=values.FILE)
@click.argument("caption", type=values.TEXT)
@click.option("-o", "--out", type=values.NEW_FILE, help="Draw the explanation to this file (.png or .jpg).")
@click.option("--html", type=values.NEW_FILE, help="Also write the explanation to this file, as a page.")
@options.backbone_options("Network that turns the picture into regions, in place of the backbone of BUNDLE.")
@options.backend_option
@options.device_option
@options.precision_option
@options.json_option
@click.pass_context
def command(
    context: click.Context, bundle: Path, image: Path, caption: str, out: Path | None, html: Path | None,
    backbone: str | None, weights: str, backend: str, device: str, precision: str, as_json: bool,
) -> None:  # fmt: skip
    """Score IMAGE with CAPTION, and show the region that each word chose, how similar they are, and the word's share.

    A region of a grid is shown as its row and its column, counted from 0 at the top left; another one as its index.
    With --out the regions are drawn on the picture. With --html they are a page on which each word shows its region.
    """
    from ..runtime.gallery import is_gallery
    from ..runtime.matcher import Matcher

    if is_gallery(bundle):
        hint = "A gallery of embeddings that came without a bundle has no words to explain"
        raise click.UsageError(f"{visible(bundle)} is a gallery: give the bundle that encoded its rows. {hint}")
    if out is not None and out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise click.BadParameter(f"the file must end in .png or .jpg, got {visible(out)}", param_hint="--out")
    network = options.open_backbone(context, backbone, weights)
    with Matcher.open(bundle, backend, precision, backbone=network, device=device) as matcher:
        explanation = matcher.explain(matcher.encode_pictures([image]), caption)
        unknown = matcher.unknown_words(caption)
    warn_of_unknown(unknown, [match.known for match in explanation.words])
    if out is not None:
        _draw(image, caption, explanation, out)
    if html is not None:
        from ..runtime.files import write_file
        from ..runtime.pictures.page import render_explanation

        write_file(html, render_explanation(image, caption, explanation))
    if as_json:
        print_json({"image": str(image), "caption": caption, "unknown_words": unknown, **explanation.to_dict()})
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
