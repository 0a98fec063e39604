"""`--device cuda:N` and `--encoder-device cuda:N` reach whatever opens a bundle: a GPU that is not there is refused."""

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from ..run_chan import chan, ok


@pytest.fixture(scope="module")
def world(make_small_model: Callable, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A bundle that reads pictures, pictures, and a gallery of them."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "photos").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (24, 24, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"{number}.png")
    made = {
        "bundle": str(make_small_model(pictures=True).bundle),
        "photos": str(folder / "photos"),
        "picture": str(folder / "photos" / "0.png"),
        "gallery": str(folder / "gallery"),
        "other": str(folder / "other"),
    }
    ok("index", made["bundle"], made["photos"], "-o", made["gallery"])
    return made


@pytest.mark.parametrize(
    "command",
    [
        "search {gallery} CAPTION --encoder-device cuda:77",
        "search {bundle} {photos} CAPTION --encoder-device cuda:77",
        "search {gallery} --image {picture} --encoder-device cuda:77",
        "serve {gallery} --port 0 --encoder-device cuda:77",
        "index {bundle} {photos} -o {other} --device cuda:77",
        "explain {bundle} {picture} CAPTION --device cuda:77",
        "doctor --bundle {bundle} --device cuda:77",
    ],
)
def test_a_gpu_that_is_not_there_is_refused(world: dict[str, str], command: str) -> None:
    arguments = [word.format(**world) if word != "CAPTION" else "a red apple" for word in command.split()]
    done = chan(*arguments)
    assert done.exit_code == 1, done.output
    assert "device cuda:77 is not there: CUDA shows" in done.output
