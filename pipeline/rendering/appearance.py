"""What a person looks like and how they walk: everything that stays the same from camera to camera."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.rendering.randomness import choose, stream

Colour = tuple[int, int, int]
"""Red, green, blue, 0..255, under neutral light."""

# How often a colour is worn in a street: dark and neutral ones dominate, as in pedestrian attribute data sets, so that
# many different people look alike in colour alone.
UPPER_COLOURS: dict[Colour, float] = {
    (30, 30, 33): 24,  # black
    (68, 70, 75): 11,  # dark grey
    (128, 130, 134): 9,  # grey
    (36, 44, 72): 13,  # navy
    (226, 225, 220): 11,  # white
    (192, 178, 150): 4,  # beige
    (86, 64, 46): 4,  # brown
    (82, 86, 58): 4,  # olive
    (66, 98, 148): 5,  # denim blue
    (150, 188, 218): 3,  # light blue
    (158, 36, 38): 4,  # red
    (98, 32, 44): 2.5,  # burgundy
    (44, 96, 70): 2.5,  # green
    (206, 160, 52): 1.5,  # mustard
    (206, 104, 44): 1,  # orange
    (208, 134, 152): 2,  # pink
    (108, 74, 132): 2,  # purple
    (46, 132, 150): 1.5,  # teal
}
LOWER_COLOURS: dict[str, dict[Colour, float]] = {
    "jeans": {(48, 62, 98): 5, (34, 40, 60): 4, (86, 110, 150): 3, (124, 146, 176): 1.5, (46, 48, 54): 2},
    "trousers": {
        (32, 32, 35): 6,
        (62, 64, 68): 3,
        (36, 40, 60): 2.5,
        (118, 118, 120): 1.5,
        (178, 162, 130): 2.2,
        (92, 78, 60): 1.4,
        (74, 78, 56): 1.2,
        (220, 216, 206): 0.7,
        (104, 44, 48): 0.3,
    },
    "shorts": {(44, 46, 52): 3, (176, 160, 130): 3, (60, 76, 108): 3, (112, 112, 112): 1.5, (84, 92, 62): 1.5},
    "skirt": {(34, 34, 38): 4, (54, 58, 86): 2, (150, 60, 66): 1, (196, 184, 160): 1.2, (110, 110, 116): 1.3},
}
SKINS: tuple[Colour, ...] = (
    (238, 205, 182),
    (228, 188, 160),
    (214, 170, 138),
    (198, 150, 116),
    (168, 120, 88),
    (130, 90, 64),
    (96, 66, 48),
)
HAIR_COLOURS: dict[Colour, float] = {
    (24, 21, 20): 8,
    (48, 36, 28): 6,
    (82, 58, 40): 4,
    (128, 94, 58): 2,
    (186, 154, 104): 1.6,
    (150, 148, 146): 1.8,
    (212, 210, 206): 0.8,
    (120, 56, 34): 0.7,
}
BAG_COLOURS: dict[Colour, float] = {
    (30, 30, 32): 6,
    (58, 62, 70): 2,
    (38, 46, 78): 2,
    (110, 76, 48): 2.2,
    (150, 38, 40): 1,
    (84, 90, 62): 1,
    (188, 172, 140): 1.2,
    (60, 120, 140): 0.6,
}
SHOE_COLOURS: dict[Colour, float] = {
    (28, 27, 28): 6,
    (228, 226, 222): 3.2,
    (90, 62, 42): 2,
    (110, 112, 116): 1.5,
    (50, 58, 92): 1,
    (160, 50, 50): 0.5,
}


@dataclass(frozen=True)
class Appearance:
    """One person. Lengths in metres, angles in radians, colours under neutral light.

    girth and shoulders scale the average body's thickness and shoulder width; speed is in m/s and stride in metres
    (two steps); arm_swing is the upper arm's largest angle; lean tilts the torso forward.
    """

    height: float
    girth: float
    shoulders: float
    skin: Colour
    hair: str  # bald, crop, short, bob, long, ponytail, bun
    hair_colour: Colour
    headwear: str  # none, cap, beanie, hood
    headwear_colour: Colour
    beard: bool
    upper: str  # tshirt, shirt, jacket, open_jacket, coat, hoodie, dress
    upper_colour: Colour
    second_colour: Colour  # of the pattern, and of what an open jacket shows
    pattern: str  # plain, stripes, checks, block, print, back
    lower: str  # trousers, jeans, shorts, skirt
    lower_colour: Colour
    leg_width: float
    shoe_colour: Colour
    sole_colour: Colour
    bag: str  # none, backpack, shoulder, handbag
    bag_colour: Colour
    bag_side: int  # +1 left, -1 right
    stride: float
    speed: float
    arm_swing: float
    lean: float
    texture_seed: int


def _colour(rng: np.random.Generator, weighted: Mapping[Colour, float], spread: float = 7.0) -> Colour:
    """A colour of the table, a little lighter or darker and a little off in hue."""
    varied = np.array(choose(rng, weighted), dtype=float) * rng.uniform(0.88, 1.12) + rng.normal(0, spread, 3)
    red, green, blue = np.clip(np.rint(varied), 12, 245).astype(int).tolist()
    return red, green, blue


def sample_appearance(seed: int, person: int) -> Appearance:
    """The appearance of person number `person` in the population `seed`; the same arguments give the same person."""
    rng = stream("appearance", seed, person)
    feminine = rng.random() < 0.47
    height = float(np.clip(rng.normal(1.65, 0.062) if feminine else rng.normal(1.77, 0.07), 1.48, 1.98))
    girth = float(np.clip(rng.lognormal(0.0, 0.12) * (0.95 if feminine else 1.0), 0.8, 1.38))
    shoulders = float(np.clip(rng.normal(0.94 if feminine else 1.05, 0.045), 0.84, 1.18))
    skin = SKINS[int(rng.choice(len(SKINS), p=[0.14, 0.22, 0.22, 0.16, 0.11, 0.09, 0.06]))]
    hair = choose(
        rng,
        {"long": 36, "bob": 20, "ponytail": 22, "bun": 10, "short": 12}
        if feminine
        else {"crop": 34, "short": 46, "bald": 12, "bob": 5, "ponytail": 3},
    )
    upper = choose(
        rng,
        {"tshirt": 22, "shirt": 13, "jacket": 17, "open_jacket": 13, "coat": 13, "hoodie": 8, "dress": 14}
        if feminine
        else {"tshirt": 26, "shirt": 18, "jacket": 20, "open_jacket": 14, "coat": 8, "hoodie": 14},
    )
    upper_colour = _colour(rng, UPPER_COLOURS)
    second_colour = _colour(rng, UPPER_COLOURS)
    if float(np.abs(np.subtract(upper_colour, second_colour)).max()) < 45:  # a pattern needs contrast to be one
        second_colour = (222, 220, 214) if sum(upper_colour) < 380 else (44, 46, 54)
    patterns = {
        "tshirt": {"plain": 46, "stripes": 16, "print": 26, "block": 8, "back": 4},
        "shirt": {"plain": 52, "checks": 30, "stripes": 18},
        "jacket": {"plain": 66, "block": 24, "back": 10},
        "open_jacket": {"plain": 86, "back": 14},
        "coat": {"plain": 88, "checks": 12},
        "hoodie": {"plain": 50, "print": 28, "block": 14, "back": 8},
        "dress": {"plain": 56, "checks": 12, "stripes": 18, "block": 14},
    }
    lower = choose(
        rng,
        {"jeans": 40, "trousers": 32, "skirt": 18, "shorts": 10} if feminine else {"jeans": 43, "trousers": 41, "shorts": 16},
    )
    if lower == "shorts" and upper in ("coat", "jacket"):
        lower = "jeans"  # nobody dresses for two seasons at once
    headwear = choose(rng, {"none": 80, "cap": 10, "beanie": 7, "hood": 3})
    if headwear == "hood" and upper != "hoodie":
        headwear = "none"
    stride_share = float(rng.normal(0.80, 0.05))
    return Appearance(
        height=height,
        girth=girth,
        shoulders=shoulders,
        skin=_colour(rng, {skin: 1.0}, 3.0),
        hair=hair,
        hair_colour=_colour(rng, HAIR_COLOURS, 4.0),
        headwear=headwear,
        headwear_colour=upper_colour if headwear == "hood" else _colour(rng, UPPER_COLOURS),
        beard=bool(not feminine and rng.random() < 0.3),
        upper=upper,
        upper_colour=upper_colour,
        second_colour=second_colour,
        pattern=choose(rng, patterns[upper]),
        lower=lower,
        lower_colour=_colour(rng, LOWER_COLOURS[lower], 5.0),
        leg_width=float(np.clip(rng.normal(0.92 if feminine else 1.06, 0.11), 0.75, 1.35)),
        shoe_colour=_colour(rng, SHOE_COLOURS, 4.0),
        sole_colour=(224, 222, 216) if rng.random() < 0.45 else (34, 33, 33),
        bag=choose(
            rng,
            {"none": 44, "backpack": 16, "shoulder": 22, "handbag": 18}
            if feminine
            else {"none": 56, "backpack": 26, "shoulder": 14, "handbag": 4},
        ),
        bag_colour=_colour(rng, BAG_COLOURS),
        bag_side=1 if rng.random() < 0.5 else -1,
        stride=float(np.clip(stride_share, 0.68, 0.92)) * height,
        speed=float(np.clip(rng.normal(1.32, 0.16), 0.9, 1.75)),
        arm_swing=float(np.clip(rng.normal(0.42, 0.14), 0.1, 0.8)),
        lean=float(np.clip(rng.normal(0.04, 0.04), -0.05, 0.17)),
        texture_seed=int(rng.integers(1 << 31)),
    )
