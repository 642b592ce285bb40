"""Whether an image is like those that a network was trained on, by rules that can be read.

An image is told to be unlike them if

- its shorter side is less than half the shortest, or more than four times the longest, side of a training
  image before resizing;
- its longer side is more than twice the shorter one: it is stretched to a square;
- all its pixels are the same;
- its brightness, contrast or colour (``dogmed.data.pixels``) lies further outside the range of the training
  images than half of that range, and than 0.05;
- it is grey (its colour is below 0.01), and no training image was.

Weights of before there were these ranges are judged by the first three. A coloured image for a network that
has seen grey ones is told by ``dogmed.inference.reading.pictures``. An image that passes is not thereby one that
the network can judge.
"""

from __future__ import annotations

from dogmed.data.pixels import measure
from dogmed.data.tasks import official_tasks
from dogmed.inference.reading.pictures import Picture
from dogmed.weights.records import DataRecord

MARGIN = 0.05
GREY = 0.01
_OFFICIAL = ("official", "variant", "synthetic")


def channels(seen: DataRecord) -> int | None:
    """1 if a network was trained on grey images, 3 on coloured ones, None where its record does not tell."""
    if seen.channels is None and seen.source in _OFFICIAL and seen.name in official_tasks():
        return official_tasks()[seen.name].channels
    return seen.channels


def unlike(picture: Picture, seen: DataRecord) -> list[str]:
    """What of a picture is unlike the training images, one phrase each."""
    found = []
    short, long = sorted((picture.height, picture.width))
    sides = seen.sides or (seen.source_size and (seen.source_size, seen.source_size))
    if sides and not sides[0] / 2 <= short <= sides[1] * 4:
        trained = f"{sides[0]}" if sides[0] == sides[1] else f"{sides[0]} to {sides[1]}"
        found.append(f"{picture.width}×{picture.height} px, training images had {trained}")
    if long > 2 * short:
        found.append(f"{picture.width}×{picture.height} px is stretched to a square")
    figures = measure(picture.pixels)
    if picture.pixels.min() == picture.pixels.max():
        found.append("all its pixels are the same")
    for name, (low, high) in seen.pixels.items():
        margin = max((high - low) / 2, MARGIN)
        value = figures.get(name, low)
        grey = name == "colour" and value < GREY < low
        if grey or not low - margin <= value <= high + margin:
            found.append(f"{name} {value:.2f}, training images had {low:.2f} to {high:.2f}")
    return found
