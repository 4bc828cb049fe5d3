"""Whether a private run is marked private."""

from pathlib import Path

from PIL import Image

from scenarios.engine import public_part


def unmarked(folder: Path) -> list[str]:
    """What lacks its private mark: the folder's top (for all files outside public/), the page, pictures of real images."""
    found = []
    mark = folder / public_part.MARK
    if not mark.exists() or "hand on nothing of this folder but what is in public/" not in mark.read_text():
        found.append(str(mark))
    for page in folder.rglob("report.html"):
        if "<body><p class=reason>Private:" not in page.read_text():
            found.append(str(page))
    for path in folder.rglob("figures/pairs-*.png"):
        with Image.open(path) as picture:
            if "Private: shows real images" not in picture.text["Description"]:  # type: ignore[attr-defined]
                found.append(str(path))
    return found
