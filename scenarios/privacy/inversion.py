"""What does one message of a client reveal? A gradient that is inverted, an upload of condensed images, and a private upload.

An upload is images, so that nothing is inverted: for each victim the image of its class that is nearest to it counts, which is more than
somebody who does not know the victim could choose. The floor are real images of its class that the client does not have.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from apps.privacy.distances import root_mean_square, structure
from apps.privacy.figures import reconstructions
from apps.privacy.inversion import DLG, created, decibels, dlg_network, gradient_of, invert, likeness
from apps.privacy.metrics import by_run
from distill.condensed import CondensedSet
from distill.data import ImageData
from distill.errors import InputError
from distill.randomness import generator
from distill.records import append_line, write_whole
from scenarios.engine.ledger import matching
from scenarios.engine.public_part import mark
from scenarios.engine.record import Line, Results
from scenarios.engine.study import Options, Run
from scenarios.privacy.schema import InversionTable, PrivacyStudy
from scenarios.privacy.sets import condensed_by, private_set, statistics_of

FOLDER, SHOWN = "inversion", 8  # the second: victims of the picture


def check_inversion(study: PrivacyStudy, table: InversionTable, data: ImageData) -> None:
    """Raise `InputError` for what would fail after minutes of work."""
    if table.client_images >= len(data.train):
        raise InputError(f"[inversion]: client_images is {table.client_images}; allowed: fewer than the {len(data.train)} training images.")
    for name in table.networks:
        created(dlg_network if name == DLG else name, data.spec, generator(0, "check"))
    if table.privacy is not None:
        for epsilon in table.privacy.epsilon:
            statistics_of(dataclasses.replace(study, privacy=table.privacy), client_of(table, data, 0)[0], epsilon, None)


def client_of(table: InversionTable, data: ImageData, seed: int) -> tuple[ImageData, Tensor, Tensor]:
    """The client's data, positions of the victims in them, and positions in ``data`` of the images that the client does not have."""
    where = data.train.labels.device
    order = torch.randperm(len(data.train), generator=generator(seed, "inversion", "client")).to(where)
    own, others = order[: table.client_images].sort().values, order[table.client_images :].sort().values
    victims = torch.randperm(table.client_images, generator=generator(seed, "inversion", "victims"))[: table.victims]
    return dataclasses.replace(data, train=data.train.at(own)), victims.to(where), others


def fill_inversion(study: PrivacyStudy, table: InversionTable, run: Run) -> None:
    """PSNR and SSIM of what each message shows of each victim. The picture has real images and stays in the run's folder."""
    client, victims, others = client_of(table, run.data, run.options.seed)
    if table.privacy is not None:
        mark(run.folder)
    labels = client.train.labels[victims].tolist()
    true = client.spec.denormalise(client.normalised("train", victims)).cpu()
    rows: dict[str, list[Line]] = {}
    pictures = {"victims": true[:SHOWN]}
    for name in table.networks:
        what = f"gradient of {name}"
        rows[what] = _inverted(table, run, client, victims, name)
        files = [_picture(run.folder, name, place) for place in range(min(SHOWN, len(victims)))]
        pictures[what] = torch.stack([safetensors.torch.load_file(file)["pixels"] for file in files])
        run.say(f"inversion, {what}: {_words(_row(rows[what]))}")
    uploads = {name: (one.pixels().cpu(), one.decoded().hard_labels.cpu()) for name, one in _uploads(study, table, run, client).items()}
    pixels = run.data.spec.denormalise(run.data.normalised("train", others)).cpu()
    classes = run.data.train.labels[others].cpu()
    draws, count = generator(run.options.seed, "inversion", "floor"), len(next(iter(uploads.values()))[1]) // len(run.data.classes)
    few = torch.cat([where[torch.randperm(len(where), generator=draws)[:count]] for where in _by_class(classes)])
    uploads |= {f"{count} other real images a class": (pixels[few], classes[few]), "all other real images": (pixels, classes)}
    for name, (images, own) in uploads.items():
        found = [_nearest(victim, images[own == label]) for victim, label in zip(true, labels, strict=True)]
        rows[name] = [{"psnr": psnr, "ssim": ssim} for psnr, ssim, _ in found]
        pictures[name] = torch.stack([image for *_, image in found[:SHOWN]])
        run.say(f"inversion, {name}: {_words(_row(rows[name]))}")
    run.results["inversion"] = {name: _row(lines) for name, lines in rows.items()}
    reconstructions(pictures).save(run.folder / "figures/inversion.png")


def _inverted(table: InversionTable, run: Run, client: ImageData, victims: Tensor, name: str) -> list[Line]:
    """One line a victim: the client's gradient of it at fresh weights, inverted by `apps.privacy.inversion.invert`."""
    metrics, key = run.folder / "metrics.jsonl", {"stage": "inversion", "network": name}
    done = {line["victim"]: line for line in matching(metrics, key)}
    for place in (place for place in range(len(victims)) if place not in done):
        network = created(dlg_network if name == DLG else name, client.spec, generator(run.options.seed, "inversion", name, place))
        image = client.normalised("train", victims[place : place + 1]).cpu().double()
        label = client.train.labels[victims[place : place + 1]].cpu()
        draws = generator(run.options.seed, "inversion", "start", name, place)
        found = invert(network, gradient_of(network, image, label), client.spec, draws, table.search)
        shown, real = client.spec.denormalise(found.image[None]), client.spec.denormalise(image)
        if place < SHOWN:
            write_whole(_picture(run.folder, name, place), safetensors.torch.save({"pixels": shown[0].float()}))
        line = {"psnr": float(decibels(shown, real)), "ssim": float(likeness(shown, real)), "label_right": found.label == int(label)}
        done[place] = {**key, "victim": place, **line, "distance": found.distance}
        append_line(metrics, done[place])
    return [done[place] for place in range(len(victims))]


def _uploads(study: PrivacyStudy, table: InversionTable, run: Run, client: ImageData) -> dict[str, CondensedSet]:
    """The client's condensed upload, and one under each private budget."""
    options, folder = dataclasses.replace(run.options, quiet=True), run.folder / FOLDER
    made = {"upload": _kept(folder / "upload.safetensors", study, client, options, None)}
    private = None if table.privacy is None else dataclasses.replace(study, privacy=table.privacy)
    for epsilon in () if table.privacy is None else table.privacy.epsilon:
        assert private is not None
        made[f"private upload, epsilon {epsilon:g}"] = _kept(folder / f"upload-{epsilon:g}.safetensors", private, client, options, epsilon)
    return made


def _kept(path: Path, study: PrivacyStudy, client: ImageData, options: Options, epsilon: float | None) -> CondensedSet:
    if not path.exists():
        if epsilon is None:
            made = condensed_by(study, client, options.seed, None, options, None)
        else:
            made, _ = private_set(study, client, epsilon, options.seed, options, path.parent, f"epsilon{epsilon:g}")
        made.save(path)
    return CondensedSet.load(path)


def _nearest(victim: Tensor, images: Tensor) -> tuple[float, float, Tensor]:
    """The highest PSNR and the highest SSIM of any of the images (N, C, H, W) with the victim (C, H, W), and the image of the first."""
    place = int(root_mean_square(victim[None], images)[0].argmin())
    return float(decibels(images[place][None], victim[None])), float(1 - structure(victim[None], images).min()), images[place]


def _by_class(labels: Tensor) -> list[Tensor]:
    return [(labels == label).nonzero()[:, 0] for label in labels.unique().tolist()]


def _picture(folder: Path, network: str, place: int) -> Path:
    return folder / FOLDER / f"{network}-{place}.safetensors"


def _row(lines: Sequence[Line]) -> Results:
    """Means over victims with their 95 % intervals."""
    row: Results = {"victims": len(lines)}
    row |= {key: dataclasses.asdict(by_run([line[key] for line in lines])) for key in ("psnr", "ssim")}
    return row | ({"label_percent": 100 * sum(line["label_right"] for line in lines) / len(lines)} if "label_right" in lines[0] else {})


def _words(row: Results) -> str:
    label = f", label right in {row['label_percent']:.0f} %" if "label_percent" in row else ""
    return f"PSNR {row['psnr']['value']:.1f} dB, SSIM {row['ssim']['value']:.3f}{label}"
