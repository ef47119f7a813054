"""The person's surface: body, clothes, hair and bag as one mesh hung on the bones of `pipeline.rendering.body`."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from pipeline.rendering import clothing
from pipeline.rendering.appearance import Appearance
from pipeline.rendering.body import BONE, proportions
from pipeline.rendering.mesh import Mesh, Region, loft, merge

THICKNESS = {"tshirt": 0.002, "shirt": 0.003, "hoodie": 0.008, "jacket": 0.009, "open_jacket": 0.008, "coat": 0.009}
HEM = {"tshirt": 0.478, "shirt": 0.468, "hoodie": 0.474, "jacket": 0.47, "open_jacket": 0.462, "dress": 0.31}


def _smoothstep(value: npt.NDArray[np.float64], low: float, high: float) -> npt.NDArray[np.float64]:
    share = np.clip((value - low) / (high - low), 0, 1)
    return share * share * (3 - 2 * share)


def _hem(person: Appearance) -> float:
    """The height of the upper garment's lower edge, as a share of the person's height."""
    if person.upper == "coat":
        return 0.30 + 0.12 * (person.texture_seed % 7) / 6
    return HEM[person.upper]


def _skirt_bones(mesh: Mesh, from_z: float, to_z: float, grip: float) -> Mesh:
    """Below from_z the cloth follows the thigh of its side, up to the share `grip` at to_z."""
    y, z = mesh.vertices[:, 1], mesh.vertices[:, 2]
    below = z < from_z
    bones = mesh.bones.copy()
    weight = mesh.weight.copy()
    bones[below, 0] = BONE["pelvis"]
    bones[below, 1] = np.where(y[below] > 0, BONE["left_thigh"], BONE["right_thigh"])
    sideways = np.clip(np.abs(y[below]) / 0.035, 0, 1)
    weight[below] = 1 - grip * sideways * np.clip((from_z - z[below]) / (from_z - to_z), 0, 1)
    return replace(mesh, bones=bones, weight=weight)


def _torso(person: Appearance) -> Mesh:
    h, g, extra = person.height, person.girth, THICKNESS.get(person.upper, 0.003)
    wide = person.shoulders
    rings = np.array(  # height, depth, width, shift forward; shares of the body height
        [
            [0.852, 0.033, 0.036, -0.004],
            [0.842, 0.046, 0.066 * wide, -0.004],
            [0.828, 0.054, 0.096 * wide, -0.003],
            [0.806, 0.061, 0.108 * wide, -0.002],
            [0.775, 0.067, 0.106 * wide, 0.000],
            [0.735, 0.070, 0.101 * wide, 0.002],
            [0.690, 0.068, 0.095 * wide, 0.001],
            [0.645, 0.063, 0.088, 0.000],
            [0.605, 0.061, 0.086, 0.000],
            [0.565, 0.064, 0.092, -0.002],
            [0.525, 0.068, 0.098, -0.004],
            [0.480, 0.069, 0.100, -0.003],
        ]
    )
    hem = _hem(person)
    if hem < 0.45:
        flare = 0.016 if person.upper == "coat" else 0.03
        for share in (0.25, 0.5, 0.75, 1.0):
            rings = np.vstack([rings, [0.48 + (hem - 0.48) * share, 0.072 + 0.7 * flare * share, 0.1 + flare * share, 0]])
    else:
        rings = np.vstack([rings[:-1], [hem, 0.069, 0.101, -0.003]])
    z = rings[:, 0]
    belly = np.exp(-(((z - 0.61) / 0.09) ** 2)) * (g - 0.95)
    depth = (rings[:, 1] * (0.45 + 0.55 * g) + 0.045 * belly + extra) * h
    width = (rings[:, 2] * (0.6 + 0.4 * g) + 0.02 * belly + extra) * h
    if person.upper == "dress":
        waist = np.exp(-(((z - 0.615) / 0.05) ** 2))
        width *= 1 - 0.10 * waist
        depth *= 1 - 0.06 * waist
    centres = np.stack([(rings[:, 3] + 0.03 * belly) * h, np.zeros(len(z)), z * h], 1)
    exposure = 1 - 0.14 * np.exp(-(((z - 0.70) / 0.07) ** 2)) - 0.1 * (z < 0.5)
    mesh = loft(
        centres,
        np.stack([depth, width], 1),
        clothing.TOP,
        columns=20,
        squareness=0.82,
        bones=(BONE["chest"], BONE["pelvis"]),
        weight=_smoothstep(z, 0.55, 0.64),
        exposure=exposure,
    )
    if hem < 0.45:
        return _skirt_bones(mesh, 0.50 * h, 0.42 * h, 0.92)
    return _skirt_bones(mesh, 0.52 * h, 0.46 * h, 0.5)


def _hips(person: Appearance) -> Mesh:
    h, g = person.height, person.girth
    rings = np.array(
        [
            [0.605, 0.055, 0.080, 0.000],
            [0.565, 0.061, 0.089, -0.003],
            [0.525, 0.066, 0.096, -0.006],
            [0.490, 0.064, 0.095, -0.005],
            [0.465, 0.050, 0.080, -0.002],
            [0.452, 0.030, 0.040, 0.000],
        ]
    )
    z = rings[:, 0]
    scale = np.array([0.45 + 0.55 * g, 0.6 + 0.4 * g])
    return loft(
        np.stack([rings[:, 3] * h, np.zeros(len(z)), z * h], 1),
        rings[:, 1:3] * h * scale,
        clothing.HIPS,
        columns=16,
        squareness=0.85,
        bones=(BONE["pelvis"], BONE["pelvis"]),
        exposure=np.where(z < 0.48, 0.75, 0.95),
    )


LEG = np.array(  # height, depth, width, shift forward
    [
        [0.530, 0.054, 0.046, -0.003],
        [0.480, 0.054, 0.047, -0.004],
        [0.425, 0.050, 0.044, 0.000],
        [0.365, 0.043, 0.039, 0.002],
        [0.315, 0.037, 0.034, 0.003],
        [0.285, 0.034, 0.032, 0.004],
        [0.255, 0.033, 0.031, 0.002],
        [0.215, 0.034, 0.031, -0.004],
        [0.165, 0.030, 0.027, -0.005],
        [0.110, 0.023, 0.022, -0.002],
        [0.065, 0.020, 0.019, 0.000],
        [0.035, 0.020, 0.019, 0.000],
    ]
)


def _leg_tube(person: Appearance, side: str, region: Region, rings: npt.NDArray[np.float64], columns: int) -> Mesh:
    h, g = person.height, person.girth
    body = proportions(person)
    sign = 1 if side == "left" else -1
    z = rings[:, 0]
    inward = 0.10 * body.hip_half * np.clip((0.5 - z) / 0.5, 0, 1)
    thick = 0.55 + 0.45 * g
    return loft(
        np.stack([rings[:, 3] * h, np.full(len(z), sign * body.hip_half) - sign * inward, z * h], 1),
        rings[:, 1:3] * h * thick,
        region,
        columns=columns,
        bones=(BONE[f"{side}_thigh"], BONE[f"{side}_calf"]),
        weight=_smoothstep(z, 0.245, 0.305),
        exposure=np.interp(z, [0.05, 0.3, 0.45, 0.53], [0.88, 0.95, 0.78, 0.85]),
    )


def _legs(person: Appearance) -> list[Mesh]:
    parts = []
    bare = person.upper == "dress" or person.lower in ("skirt", "shorts")
    for side, region in (("left", clothing.LEFT_LEG), ("right", clothing.RIGHT_LEG)):
        if bare:
            parts.append(_leg_tube(person, side, clothing.BARE_LEG, LEG, 10))
        if person.upper == "dress" or person.lower == "skirt":
            continue
        cloth = LEG.copy()
        z = cloth[:, 0]
        straight = np.interp(z, [0.04, 0.28, 0.42], [0.034, 0.039, 0.046]) * person.leg_width
        cloth[:, 1] = np.maximum(cloth[:, 1] + 0.002, straight)
        cloth[:, 2] = np.maximum(cloth[:, 2] + 0.002, 0.92 * straight)
        if person.lower == "shorts":
            cloth = np.vstack([cloth[:4], [0.305, 0.050, 0.046, 0.0], [0.290, 0.050, 0.046, 0.0]])
            cloth[3:, 1:3] *= person.leg_width
        parts.append(_leg_tube(person, side, region, cloth, 12))
    if person.lower == "skirt" and person.upper != "dress":
        h, g = person.height, person.girth
        hem = 0.27 + 0.10 * (person.texture_seed % 5) / 4
        if person.upper == "coat":
            hem = max(hem, _hem(person) + 0.01)
        share = np.linspace(0, 1, 6)
        z = 0.60 + (hem - 0.60) * share
        profile = np.stack(
            [np.interp(share, [0, 0.35, 1], [0.060, 0.072, 0.088]), np.interp(share, [0, 0.35, 1], [0.086, 0.101, 0.122])], 1
        )
        mesh = loft(
            np.stack([np.zeros(6), np.zeros(6), z * h], 1),
            profile * h * np.array([0.45 + 0.55 * g, 0.6 + 0.4 * g]) * (0.85 if person.upper == "coat" else 1.0),
            clothing.SKIRT,
            columns=18,
            bones=(BONE["pelvis"], BONE["pelvis"]),
            exposure=0.95,
        )
        parts.append(_skirt_bones(mesh, 0.5 * h, 0.42 * h, 0.92))
    return parts


def _shoe(person: Appearance, side: str) -> Mesh:
    h = person.height
    body = proportions(person)
    y = (1 if side == "left" else -1) * body.hip_half * 0.92
    length = np.array([-0.30, -0.26, -0.08, 0.12, 0.34, 0.52, 0.66, 0.72]) * body.foot
    tall = np.array([0.010, 0.020, 0.023, 0.021, 0.016, 0.013, 0.010, 0.004]) * h
    wide = np.array([0.010, 0.017, 0.019, 0.019, 0.023, 0.024, 0.018, 0.006]) * h
    return loft(
        np.stack([length, np.full(8, y), tall], 1),
        np.stack([tall, wide], 1),
        clothing.SHOE,
        columns=10,
        squareness=0.8,
        bones=(BONE[f"{side}_foot"], BONE[f"{side}_foot"]),
        exposure=0.9,
        along="x",
    )


def _arm(person: Appearance, side: str) -> list[Mesh]:
    h, g = person.height, person.girth
    body = proportions(person)
    sign = 1 if side == "left" else -1
    extra = THICKNESS.get(person.upper, 0.002)
    rings = np.array(  # height, depth, width
        [
            [0.834, 0.010, 0.010],
            [0.828, 0.022, 0.020],
            [0.812, 0.030, 0.027],
            [0.785, 0.032, 0.029],
            [0.745, 0.030, 0.028],
            [0.700, 0.027, 0.025],
            [0.660, 0.024, 0.023],
            [0.632, 0.023, 0.022],
            [0.600, 0.023, 0.022],
            [0.550, 0.020, 0.019],
            [0.505, 0.017, 0.015],
            [0.487, 0.016, 0.013],
        ]
    )
    thick = 0.6 + 0.4 * g
    inward = np.interp(rings[:, 0], [0.78, 0.834], [0.0, 0.016]) * h

    def tube(table: npt.NDArray[np.float64], shift: npt.NDArray[np.float64], region: Region, more: float) -> Mesh:
        z = table[:, 0]
        return loft(
            np.stack([np.zeros(len(z)), sign * (body.shoulder_half - shift), z * h], 1),
            (table[:, 1:3] * thick + more) * h,
            region,
            columns=10,
            bones=(BONE[f"{side}_arm"], BONE[f"{side}_forearm"]),
            weight=_smoothstep(z, 0.61, 0.655),
            exposure=np.interp(z, [0.6, 0.8], [0.92, 1.0]),
        )

    region = clothing.LEFT_ARM if side == "left" else clothing.RIGHT_ARM
    parts = []
    if person.upper in clothing.LONG_SLEEVES:
        parts.append(tube(rings, inward, region, extra))
    else:
        sleeve_end = {"tshirt": 0.70, "dress": 0.745}[person.upper]
        sleeve = np.vstack([rings[rings[:, 0] > sleeve_end + 0.01], [sleeve_end, 0.030, 0.029]])
        parts.append(tube(rings[2:], inward[2:], clothing.SKIN, 0.0))
        parts.append(tube(sleeve, np.append(inward, 0)[: len(sleeve)], region, extra + 0.003))
    hand = np.array(
        [[0.492, 0.015, 0.012], [0.475, 0.021, 0.013], [0.445, 0.025, 0.013], [0.415, 0.022, 0.011], [0.390, 0.012, 0.007]]
    )
    parts.append(tube(hand, np.zeros(5), clothing.SKIN, 0.0))
    return parts


def _ball(centre: tuple[float, float, float], radii: tuple[float, float, float], region: Region, bone: str) -> Mesh:
    """An ellipsoid; radii along x, y and z."""
    angle = np.linspace(0.15, np.pi - 0.15, 6)
    centres = np.tile(np.array(centre), (6, 1))
    centres[:, 2] += radii[2] * np.cos(angle)
    ring = np.stack([radii[0] * np.sin(angle), radii[1] * np.sin(angle)], 1)
    return loft(centres, ring, region, columns=10, bones=(BONE[bone], BONE[bone]))


HEAD = np.array(  # height, depth, width, shift forward
    [
        [1.000, 0.012, 0.010, 0.000],
        [0.997, 0.030, 0.024, 0.001],
        [0.987, 0.045, 0.036, 0.002],
        [0.968, 0.054, 0.043, 0.003],
        [0.942, 0.057, 0.045, 0.005],
        [0.918, 0.055, 0.044, 0.008],
        [0.899, 0.050, 0.041, 0.012],
        [0.884, 0.042, 0.035, 0.018],
        [0.872, 0.031, 0.026, 0.025],
        [0.866, 0.014, 0.012, 0.030],
    ]
)


def _shell(person: Appearance, low: float, grow: float, back: float, tilt: float, region: Region) -> Mesh:
    """A cap over the skull down to the height `low`; tilt lifts its edge in front and lowers it behind."""
    h = person.height
    rings = HEAD[HEAD[:, 0] > low + 0.006]
    last = [np.interp(low, HEAD[::-1, 0], HEAD[::-1, column]) for column in (1, 2, 3)]
    rings = np.vstack([rings, [low, *last]])
    rings[:, 1:3] = rings[:, 1:3] * (1 + grow) + 0.003
    rings[:3, 0] += 0.05 * grow + np.array([0.004, 0.0035, 0.002])
    mesh = loft(
        np.stack([(rings[:, 3] - back) * h, np.zeros(len(rings)), rings[:, 0] * h], 1),
        rings[:, 1:3] * h,
        region,
        columns=16,
        bones=(BONE["head"], BONE["head"]),
    )
    vertices = mesh.vertices.copy()
    vertices[:, 2] += tilt * vertices[:, 0] * np.clip((1.0 - vertices[:, 2] / h) / 0.08, 0, 1)
    return replace(mesh, vertices=vertices)


def _curtain(person: Appearance, low: float, region: Region, grow: float = 0.0) -> Mesh:
    """Hair (or a hood) around the sides and the back of the head, open for the face, down to the height `low`."""
    h = person.height
    z = np.array([0.975, 0.955, 0.93, 0.905, 0.88, 0.86, *([0.83, low] if low < 0.84 else [low])])
    depth = np.interp(z, [0.77, 0.83, 0.88, 0.94, 0.975], [0.020, 0.028, 0.040, 0.048, 0.036]) + grow
    width = np.interp(z, [0.77, 0.83, 0.88, 0.94, 0.975], [0.042, 0.048, 0.052, 0.051, 0.040]) + grow
    shift = np.interp(z, [0.77, 0.83, 0.88, 0.975], [-0.056, -0.040, -0.024, -0.014])
    return loft(
        np.stack([shift * h, np.zeros(len(z)), z * h], 1),
        np.stack([depth, width], 1) * h,
        region,
        columns=14,
        bones=(BONE["head"], BONE["chest"]),
        weight=_smoothstep(z, 0.80, 0.87),
        exposure=np.interp(z, [0.8, 0.95], [0.85, 1.0]),
    )


def _head(person: Appearance) -> list[Mesh]:
    h = person.height
    bones = (BONE["head"], BONE["head"])
    parts = [
        loft(
            np.stack([HEAD[:, 3] * h, np.zeros(len(HEAD)), HEAD[:, 0] * h], 1),
            HEAD[:, 1:3] * h,
            clothing.HEAD,
            columns=18,
            squareness=0.93,
            bones=bones,
        ),
        _ball((0.063 * h, 0, 0.913 * h), (0.010 * h, 0.008 * h, 0.014 * h), clothing.SKIN, "head"),
        loft(
            np.array([[0.0, 0, 0.885], [-0.002, 0, 0.86], [-0.004, 0, 0.835]]) * h,
            np.array([[0.030, 0.029], [0.030, 0.030], [0.034, 0.038]]) * h,
            clothing.SKIN,
            columns=10,
            bones=(BONE["head"], BONE["chest"]),
            weight=[1.0, 0.5, 0.0],
            exposure=[0.6, 0.7, 0.8],
        ),
    ]
    for sign in (-1, 1):
        parts.append(_ball((0.002 * h, sign * 0.046 * h, 0.918 * h), (0.010 * h, 0.005 * h, 0.016 * h), clothing.SKIN, "head"))
    hooded = person.headwear == "hood"
    hair = clothing.HAIR
    if not hooded and person.hair in ("short", "ponytail", "bun", "bob", "long"):
        parts.append(_shell(person, 0.935, 0.10, 0.008, 0.55, hair))
    elif not hooded and person.hair == "crop":
        parts.append(_shell(person, 0.945, 0.03, 0.006, 0.5, hair))
    if not hooded and person.hair == "bob":
        parts.append(_curtain(person, 0.858, hair))
    if not hooded and person.hair == "long":
        parts.append(_curtain(person, 0.755 + 0.05 * (person.texture_seed % 3) / 2, hair))
    if not hooded and person.hair == "ponytail":
        tail = np.array([[-0.056, 0, 0.955], [-0.078, 0, 0.940], [-0.086, 0, 0.900], [-0.084, 0, 0.860], [-0.076, 0, 0.815]])
        width = np.array([[0.010, 0.010], [0.018, 0.018], [0.019, 0.020], [0.016, 0.017], [0.006, 0.006]])
        parts.append(loft(tail * h, width * h, hair, columns=8, bones=bones))
    if not hooded and person.hair == "bun":
        parts.append(_ball((-0.055 * h, 0, 0.975 * h), (0.026 * h, 0.028 * h, 0.026 * h), hair, "head"))
    if person.headwear == "beanie":
        parts.append(_shell(person, 0.930, 0.12, 0.006, 0.25, clothing.HEADWEAR))
    elif person.headwear == "cap":
        parts.append(_shell(person, 0.945, 0.11, 0.004, 0.1, clothing.HEADWEAR))
        brim = np.array([[0.045, 0, 0.950], [0.075, 0, 0.947], [0.100, 0, 0.942], [0.106, 0, 0.940]])
        flat = np.array([[0.004, 0.044], [0.004, 0.043], [0.003, 0.032], [0.002, 0.012]])
        parts.append(loft(brim * h, flat * h, clothing.HEADWEAR, columns=8, bones=bones, along="x"))
    elif hooded:
        parts.append(_curtain(person, 0.845, clothing.HEADWEAR, grow=0.012))
        parts.append(_shell(person, 0.945, 0.22, 0.010, 0.5, clothing.HEADWEAR))
    if person.upper == "hoodie" and not hooded:
        parts.append(_ball((-0.052 * h, 0, 0.842 * h), (0.034 * h, 0.064 * h, 0.026 * h), clothing.COLLAR, "chest"))
    if person.upper in ("jacket", "open_jacket", "coat", "shirt"):
        low, high = 0.838, 0.870 if person.upper != "shirt" else 0.858
        parts.append(
            loft(
                np.array([[-0.006, 0, high], [-0.005, 0, (low + high) / 2], [-0.004, 0, low]]) * h,
                np.array([[0.038, 0.040], [0.040, 0.043], [0.046, 0.056]]) * h,
                clothing.COLLAR,
                columns=12,
                bones=(BONE["chest"], BONE["chest"]),
            )
        )
    return parts


def _bag(person: Appearance) -> list[Mesh]:
    h, side = person.height, person.bag_side
    body = proportions(person)
    if person.bag == "backpack":
        z = np.array([0.825, 0.815, 0.78, 0.70, 0.64, 0.615, 0.605])
        depth = np.array([0.012, 0.030, 0.042, 0.048, 0.048, 0.040, 0.018])
        width = np.array([0.040, 0.066, 0.078, 0.082, 0.082, 0.078, 0.060])
        back = -(0.052 + 0.05 * person.girth)
        centres = np.stack([np.full(7, (back - 0.01) * h), np.zeros(7), z * h], 1)
        bones = (BONE["chest"], BONE["chest"])
        # The texture's middle is the front; a backpack is seen from behind, so it is turned round.
        mesh = loft(centres, np.stack([-depth, width], 1) * h, clothing.BAG, columns=14, squareness=0.6, bones=bones)
        return [mesh]
    if person.bag == "shoulder":
        z = np.array([0.565, 0.555, 0.51, 0.465, 0.455])
        depth = np.array([0.040, 0.062, 0.066, 0.064, 0.045])
        width = np.array([0.012, 0.024, 0.028, 0.026, 0.014])
        y = side * (0.102 * (0.6 + 0.4 * person.girth) + 0.028) * h
        centres = np.stack([np.full(5, -0.012 * h), np.full(5, y), z * h], 1)
        bones = (BONE["pelvis"], BONE["pelvis"])
        return [loft(centres, np.stack([depth, width], 1) * h, clothing.BAG, columns=12, squareness=0.55, bones=bones)]
    if person.bag == "handbag":
        name = "left_forearm" if side > 0 else "right_forearm"
        y = side * (body.shoulder_half + 0.01)
        z = np.array([0.415, 0.350, 0.345, 0.30, 0.25, 0.243])
        depth = np.array([0.006, 0.014, 0.060, 0.072, 0.076, 0.060])
        width = np.array([0.004, 0.005, 0.018, 0.028, 0.030, 0.020])
        centres = np.stack([np.zeros(6), np.full(6, y), z * h], 1)
        bones = (BONE[name], BONE[name])
        return [loft(centres, np.stack([depth, width], 1) * h, clothing.BAG, columns=12, squareness=0.6, bones=bones)]
    return []


def build(person: Appearance) -> Mesh:
    """The person's mesh in the rest pose, about 2000 vertices; its texture is `clothing.paint(person)`."""
    parts = [_torso(person), *_legs(person), *_head(person), *_bag(person)]
    if person.upper != "dress":
        parts.append(_hips(person))
    for side in ("left", "right"):
        parts += [_shoe(person, side), *_arm(person, side)]
    return merge(parts)
