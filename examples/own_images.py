"""Images of your own: a folder with one folder a class. Here a toy one is drawn first; yours are there already."""

from pathlib import Path

import numpy as np
from PIL import Image

import distill

draws = np.random.default_rng(0)
for name in ("bright-top", "bright-left"):
    folder = Path("my-images", name)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(40):
        pixels = draws.integers(0, 120, (16, 16, 3), dtype=np.uint8)
        pixels[: 8 if name == "bright-top" else 16, : 8 if name == "bright-left" else 16] += 120
        Image.fromarray(pixels).save(folder / f"{number}.png")

data = distill.load("folder:my-images", size=16, seed=0)  # a fifth of each class is kept as test, unless there are train/ and test/
tiny = distill.condense(data, "dm", ipc=1, network="ConvNetD1W32", iterations=20)
print(data.spec.classes, len(data.train), "training images,", tiny.nbytes, "bytes condensed")
print(distill.evaluate(tiny, data, network="ConvNetD1W32", seeds=2))
tiny.save("my-images.safetensors")
