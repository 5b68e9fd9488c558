"""Accuracy of a trained network on photographed, printed and drawn digits.

    python -m benchmarks.photographs runs/lenet5

The pictures are made from MNIST and from fonts.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from xbp.datasets import load_mnist
from xbp.errors import InputError
from xbp.images import isolate
from xbp.report.contents import outputs
from xbp.training import load_model

STROKES = {  # corners of the strokes, in a square of side 100
    0: [[(50, 10), (20, 30), (20, 70), (50, 90), (80, 70), (80, 30), (50, 10)]],
    1: [[(50, 10), (50, 90)]],
    2: [[(20, 25), (40, 10), (70, 15), (75, 35), (20, 90), (80, 90)]],
    3: [[(20, 15), (60, 10), (75, 30), (45, 48), (78, 65), (60, 90), (20, 85)]],
    4: [[(30, 10), (20, 55), (80, 55)], [(65, 10), (65, 90)]],
    5: [[(75, 10), (30, 10), (27, 45), (60, 42), (77, 65), (60, 88), (22, 86)]],
    6: [[(65, 10), (35, 40), (25, 70), (40, 90), (65, 88), (72, 68), (55, 55), (30, 65)]],
    7: [[(20, 12), (80, 12), (40, 90)]],
    8: [
        [(50, 50), (28, 30), (50, 10), (72, 30), (50, 50), (25, 70), (50, 90), (75, 70), (50, 50)],
    ],
    9: [[(72, 30), (50, 48), (30, 32), (48, 12), (72, 25), (70, 60), (60, 90)]],
}


def photograph(digit: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A digit of MNIST on paper: off-centre, rotated, unevenly lit, with a camera's noise."""
    size = int(rng.integers(200, 400))
    image = Image.fromarray(digit).resize((size, size), Image.Resampling.BICUBIC)
    image = image.rotate(rng.uniform(-12, 12), resample=Image.Resampling.BICUBIC)
    margin = int(rng.integers(0, size // 2))
    sheet = Image.new("L", (size + 2 * margin, size + 2 * margin))
    corner = margin + rng.integers(-margin // 2, margin // 2 + 1, size=2)
    sheet.paste(image, (int(corner[0]), int(corner[1])))
    ink = np.asarray(sheet) / 255
    v, u = np.mgrid[-1 : 1 : ink.shape[0] * 1j, -1 : 1 : ink.shape[1] * 1j]
    angle = rng.uniform(0, 2 * np.pi)
    light = 0.65 + rng.uniform(0.1, 0.3) * (np.cos(angle) * u + np.sin(angle) * v) / 1.2
    light = np.maximum(light - rng.uniform(0, 0.15) * (u * u + v * v) / 2, 0.15)
    grey = light * (1 - ink * rng.uniform(0.5, 0.85))
    return np.clip(grey + rng.normal(0, rng.uniform(0.01, 0.04), ink.shape), 0, 1)


def shadowed(digit: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`photograph` with the sharp shadow of a hand."""
    grey = photograph(digit, rng)
    v, u = np.mgrid[-1 : 1 : grey.shape[0] * 1j, -1 : 1 : grey.shape[1] * 1j]
    angle = rng.uniform(0, 2 * np.pi)
    shade = (np.cos(angle) * u + np.sin(angle) * v - rng.uniform(-0.3, 0.6)) / 0.04
    return grey * (1 - 0.35 / (1 + np.exp(-np.clip(shade, -50, 50))))


def ruled(digit: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`photograph` of squared paper."""
    grey, step = photograph(digit, rng), int(rng.integers(30, 60))
    lines = np.ones_like(grey)
    for width in range(2):
        lines[width::step, :] = lines[:, width::step] = 0.82
    return grey * lines


def typeset(digit: int, font: str, size: int = 300) -> np.ndarray:
    image = Image.new("L", (size, size), 255)
    letters = ImageFont.truetype(font, size * 2 // 3)
    middle = (size / 2, size / 2)
    ImageDraw.Draw(image).text(middle, str(digit), fill=0, font=letters, anchor="mm")
    return np.asarray(image) / 255


def drawn(digit: int, size: int, pen: int, rng: np.random.Generator) -> np.ndarray:
    """Straight, slightly skewed strokes on a light sheet, like a drawing program's."""
    image = Image.new("L", (size, size), 238)
    shape = np.eye(2) + rng.normal(0, 0.08, (2, 2))
    for stroke in STROKES[digit]:
        points = (shape @ (np.array(stroke) / 100 - 0.5).T * 0.8 + 0.5).T * size
        line = [(float(x), float(y)) for x, y in points]
        ImageDraw.Draw(image).line(line, fill=50, width=pen, joint="curve")
    return np.asarray(image) / 255


def fonts() -> list[str]:
    """Paths of matplotlib's fonts that have digits."""
    import matplotlib as mpl

    folder = Path(mpl.get_data_path()) / "fonts" / "ttf"
    names = ("DejaVuSans", "DejaVuSerif", "STIXGeneral", "cmr10", "cmss10", "cmtt10")
    found = [path for path in sorted(folder.glob("*.ttf")) if path.name.startswith(names)]
    return [str(path) for path in found if "NonUni" not in path.name and "Display" not in path.name]


def kinds(
    images: np.ndarray, labels: np.ndarray, typefaces: list[str]
) -> Iterator[tuple[str, list, list[int]]]:
    """(name, pictures, digits) of each kind."""
    rng, digits = np.random.default_rng(0), labels.tolist()
    yield "MNIST as it is, light on dark", [image / 255 for image in images], digits
    yield "MNIST, dark on light", [1 - image / 255 for image in images], digits
    yield "photographs", [photograph(image, rng) for image in images], digits
    yield "photographs of a blackboard", [1 - photograph(image, rng) for image in images], digits
    yield "photographs with a sharp shadow", [shadowed(image, rng) for image in images], digits
    yield "photographs of squared paper", [ruled(image, rng) for image in images], digits
    each = [(font, digit) for font in typefaces for digit in range(10)]
    yield "printed", [typeset(digit, font) for font, digit in each], [digit for _, digit in each]
    ten = list(range(10)) * 2
    for size, pen in ((28, 2), (100, 3), (400, 3), (400, 16), (400, 50), (1000, 4)):
        name = f"drawn on {size} × {size} with a pen of {pen}"
        yield name, [drawn(digit, size, pen, rng) for digit in ten], ten


def read(model, pictures: list) -> list[int]:
    """The digits that the network recognizes; -1 if there is none in a picture."""
    seen, found = [], []
    for picture in pictures:
        try:
            seen.append(isolate(picture))
            found.append(True)
        except InputError:
            found.append(False)
    answers = iter(np.argmax(outputs(model, np.stack(seen)), axis=1).tolist())
    return [next(answers) if there else -1 for there in found]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=1000)
    options = parser.parse_args()
    model = load_model(options.folder / "model.safetensors")
    _, (x, y) = load_mnist()
    x, y = x[: options.images], y[: options.images]
    itself = np.mean(outputs(model, x).argmax(axis=1) == y)
    print(f"the network on {len(x)} of MNIST's own: {itself:.2%}")
    for name, pictures, digits in kinds(x, y, fonts()):
        answers = read(model, pictures)
        right = sum(a == b for a, b in zip(answers, digits, strict=True))
        refused = f", {answers.count(-1)} not found" * (-1 in answers)
        print(f"{name}: {right} of {len(digits)}, {right / len(digits):.2%}{refused}", flush=True)


if __name__ == "__main__":
    main()
