"""Image folders in the layouts that people have: each is read as it was meant, or refused with what was found and what to do.

A layout is a list of lines: ``cat/ 3`` is three images of different pixels in a folder, ``a/b.png`` one image, ``a/b.png = c.png`` one with
the pixels of another, ``x.csv < name,label|a.png,cat`` a file of lines, ``empty/`` a folder, ``a -> b`` a link. What it is read as is a
line too: the classes, then the images of each class in each split.
"""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from distill import CondensedSet, ImageData, InputError, image_files
from distill.data_sources import load
from tests.distill.test_data import picture

TINY = [
    *("train/n01443537/images/ 3", "train/n01443537/n01443537_boxes.txt < n01443537_0.JPEG\t0\t0\t3\t3"),
    *("train/n01629819/images/ 2", "train/n01629819/n01629819_boxes.txt < x\t0\t0\t3\t3", "test/images/ 4"),
    *("val/images/a.png", "val/images/b.png", "val/images/c.png", "wnids.txt < n01629819|n01443537"),
    "val/val_annotations.txt < a.png\tn01629819\t0\t1\t2\t3|b.png\tn01443537\t0\t0\t1\t1|c.png\tn01629819\t0\t0\t1\t1",
    "words.txt < n01443537\tgoldfish, Carassius auratus|n01629819\tEuropean fire salamander, Salamandra|n00000001\tother",
]
# name: (layout, read as, words of a note)
READ = {
    "train and test": (["train/cat/ 2", "train/dog/ 3", "test/cat/ 1", "test/dog/ 1"], "cat dog: train 2 3, test 1 1", None),
    "capitals": (["Train/cat/ 2", "Train/dog/ 3", "Test/cat/ 1", "Test/dog/ 1"], "cat dog: train 2 3, test 1 1", None),
    "all capitals": (["TRAIN/a/ 1", "TRAIN/b/ 1", "TEST/a/ 1", "TEST/b/ 1"], "a b: train 1 1, test 1 1", None),
    "MNIST-PNG": (["training/0/ 2", "training/1/ 1", "testing/0/ 1", "testing/1/ 2"], "0 1: train 2 1, test 1 2", None),
    "valid, as Kaggle": (
        ["train/a/ 2", "train/b/ 2", "valid/a/ 1", "valid/b/ 1", "test/a/ 1", "test/b/ 1"],
        "a b: train 2 2, val 1 1, test 1 1",
        None,
    ),
    "validation only": (["trn/a/ 2", "trn/b/ 2", "Validation/a/ 1", "Validation/b/ 1"], "a b: train 2 2, test 1 1", None),
    "eval": (["train_set/a/ 1", "train_set/b/ 1", "eval/a/ 1", "eval/b/ 1"], "a b: train 1 1, test 1 1", None),
    "seg_train/seg_train": (
        [
            "seg_train/seg_train/sea/ 2",
            "seg_train/seg_train/street/ 1",
            "seg_test/seg_test/sea/ 1",
            "seg_test/seg_test/street/ 1",
            "seg_pred/seg_pred/ 3",
        ],
        "sea street: train 2 1, test 1 1",
        "seg_pred next to seg_train and seg_test: not read",
    ),
    "wrapped twice": (
        [
            "archive/dataset/Train/a/ 1",
            "archive/dataset/Train/b/ 1",
            "archive/dataset/Test/a/ 1",
            "archive/dataset/Test/b/ 1",
            "readme.txt < x",
        ],
        "a b: train 1 1, test 1 1",
        "the images are in .*archive/dataset",
    ),
    "wrapped class folders": (["images/cat/ 5", "images/dog/ 5"], "cat dog: train 4 4, test 1 1", "the images are in"),
    "class folders": (["cat/ 5", "dog/ 10"], "cat dog: train 4 8, test 1 2", None),
    "a class of trains": (["bus/ 5", "car/ 5", "train/ 5"], "bus car train: train 4 4 4, test 1 1 1", None),
    "test tubes and train cars": (["test tube/ 5", "train car/ 5"], "test tube,train car: train 4 4, test 1 1", None),
    "numbers": (["1/ 5", "2/ 5", "10/ 5"], "1 10 2: train 4 4 4, test 1 1 1", None),
    "macOS archive": (
        [
            "train/a/ 2",
            "train/b/ 2",
            "test/a/ 1",
            "test/b/ 1",
            "train/a/._0.png < junk",
            "train/.DS_Store < junk",
            "__MACOSX/train/a/._0.png < junk",
            "__MACOSX/train/a/x.png < junk",
            ".hidden/c/ 1",
        ],
        "a b: train 2 2, test 1 1",
        None,
    ),
    "Windows": (["a/ 5", "a/Thumbs.db < junk", "b/ 5", "b/desktop.ini < junk"], "a b: train 4 4, test 1 1", None),
    "empty class": (["a/ 5", "b/ 5", "c/"], "a b: train 4 4, test 1 1", "without images are left out: c"),
    "one class": (["cats/ 5"], "cats: train 4, test 1", "one class, 'cats': .* says nothing"),
    "Tiny-ImageNet": (TINY, "goldfish,European fire salamander: train 3 2, test 1 2", "test: images without labels, not read"),
    "Tiny-ImageNet, val sorted": (
        [line for line in TINY if not line.startswith("val")] + ["val/n01443537/ 1", "val/n01629819/images/ 2"],
        "goldfish,European fire salamander: train 3 2, test 1 2",
        "test: images without labels",
    ),
    "images and labels.csv": (
        ["images/ 10", "labels.csv < filename,label|" + "|".join(f"{i}.png,{'cat' if i < 5 else 'dog'}" for i in range(10))],
        "cat dog: train 4 4, test 1 1",
        None,
    ),
    "ids without suffix, Kaggle": (
        [
            "train/ 4",
            "test/ 2",
            "train.csv < id,width,breed,target|0,5,x,pug|1,5,y,pug|2,5,x,lab|3,5,y,lab",
            "test.csv < id,width|0,5|1,5",
            "sample_submission.csv < id,target|0,pug|1,pug",
        ],
        "lab pug: train 1 1, test 1 1",
        "test: images without labels",
    ),
    "split column": (
        [
            "data/images/ 4",
            "data/labels.csv < path;class;Split|images/0.png;1;Training|images/1.png;2;train|images/2.png;1;TEST|images/3.png;2;val",
        ],
        "1 2: train 1 1, test 1 0, val 0 1",
        "classes have no test images",
    ),
    "labels from 1 to 10": (
        ["images/ 20", "labels.csv < file,label|" + "|".join(f"{i}.png,{i % 10 + 1}" for i in range(20))],
        "1 2 3 4 5 6 7 8 9 10: train" + " 1" * 10 + ", test" + " 1" * 10,
        None,
    ),
    "no line of names": (["a.png", "b.png", "c.png", "d.png", "y.csv < a.png,x|b.png,x|c.png,y|d.png,y"], "x y: train 1 1, test 1 1", None),
    "metadata.csv in each split": (
        ["train/ 2", "train/metadata.csv < file_name,label|0.png,x|1.png,y", "test/ 1", "test/metadata.csv < file_name,label|0.png,y"],
        "x y: train 1 1, test 0 1",
        "1 of 2 classes have no test images .x.",
    ),
    "GTSRB": (
        [
            "Train/0/ 2",
            "Train/1/ 2",
            "Test/ 2",
            "Test.csv < Width,ClassId,Path|5,1,Test/0.png|5,0,Test/1.png",
            "Meta/ 2",
            "Train.csv < Width,ClassId,Path|5,0,Train/0/0.png",
            "Meta.csv < Path,ClassId|Meta/0.png,0|Meta/1.png,1",
        ],
        "0 1: train 2 2, test 1 1",
        "Meta next to Train and Test: not read",
    ),
    "one-hot columns, ISIC": (
        ["images/ 4", "truth.csv < image,MEL,NV|0,1.0,0.0|1,0.0,1.0|2,1,0|3,0,1"],
        "MEL NV: train 1 1, test 1 1",
        None,
    ),
    "Windows paths and a BOM": (
        ["pics/ 4", "labels.csv < \ufeffImage Path,Label|C:\\data\\pics\\0.png,a|pics\\1.png,b|2.png,a|3.png,b"],
        "a b: train 1 1, test 1 1",
        None,
    ),
    "unlisted images": (
        ["images/ 5", "labels.csv < image,label|0.png,a|1.png,a|2.png,b|3.png,b"],
        "a b: train 1 1, test 1 1",
        "1 of 5 images are in no table",
    ),
    "test classes in other capitals": (
        ["train/Cat/ 1", "train/dog/ 1", "test/cat/ 1", "test/DOG/ 1"],
        "Cat dog: train 1 1, test 1 1",
        "spelt differently",
    ),
    "subclasses": (
        ["cat/persian/ 3", "cat/siamese/ 2", "dog/ 5"],
        "cat dog: train 4 4, test 1 1",
        "cat hold folders; .* outer folder's class",
    ),
    "linked class": (["elsewhere/x/ 5", "set/a -> ../elsewhere/x", "set/b/ 5"], "a b: train 4 4, test 1 1 in set", None),
    "loop": (["a/ 5", "b/ 5", "a/up -> .."], "a b: train 4 4, test 1 1", "lead nowhere, or back"),
    "dangling links": (["a/ 5", "b/ 5", "a/gone.png -> nowhere.png", "c -> nowhere"], "a b: train 4 4, test 1 1", "2 links lead nowhere"),
    "one file twice": (["a/ 5", "b/ 5", "a/again.png -> 0.png"], "a b: train 4 4, test 1 1", "1 files are links to others"),
    "test image in train": (
        ["train/a/ 2", "train/b/ 1", "test/a/x.png = train/a/0.png", "test/b/ 1"],
        "a b: train 2 1, test 1 1",
        "1 of 2 test images are in another split",
    ),
    "one image, two classes": (["a/ 5", "b/ 4", "b/x.png = a/1.png"], "a b: train 4 4, test 1 1", "have another class elsewhere"),
    "loose images": (["a/ 5", "b/ 5", "logo.png"], "a b: train 4 4, test 1 1", "1 images lie next to the class folders"),
}
# name: (layout, words of the refusal)
REFUSED = {
    "two training splits": (["Train/a/ 1", "training/a/ 1", "test/a/ 1"], "Train and training could both be the train split; rename one"),
    "train alone": (["train/a/ 2", "train/b/ 2"], "has train/ but no test/ or val/; add one, or give folder:.*train"),
    "test without labels": (["train/a/ 2", "train/b/ 2", "test/ 3"], r"with labels \(test holds images alone\); add one, or give folder:"),
    "a table of test labels alone": (
        ["0.png", "1.png", "test.csv < filename,label|0.png,x|1.png,y"],
        "labels for test only and none for train",
    ),
    "a split column without train": (
        ["0.png", "1.png", "labels.csv < filename,label,split|0.png,x,val|1.png,y,val"],
        "labels for val only and none for train; name the table labels.csv",
    ),
    "test without train": (["Test/a/ 2", "Test/b/ 2", "other/ 2"], "has Test but no train"),
    "names in the file names": (
        ["train/cat.0.png", "train/dog.0.png", "test/1.png"],
        "no class folders, and no table of labels.*write PATH/train/CLASS",
    ),
    "images alone": (["images/ 4"], "found images: 'images' is no class; write PATH/train/CLASS/IMAGE"),
    "images and a CSV of something else": (["images/ 4", "boxes.csv < x,y,z|1,2,3"], "boxes.csv, without columns of files and labels"),
    "images beside masks": (["images/ 4", "masks/ 4"], "found images and masks: 'images' is no class"),
    "YOLO": (["images/train/ 2", "images/val/ 2", "labels/train/0.txt < 0 1 1 1 1"], "no class folders, and no table of labels"),
    "splits inside classes": (
        ["cat/train/ 2", "cat/test/ 1", "dog/train/ 2", "dog/test/ 1"],
        r"the class folders hold the splits \(cat/test\)",
    ),
    "domains": (
        ["amazon/bag/ 1", "amazon/bike/ 1", "dslr/bag/ 1", "dslr/bike/ 1"],
        r"same names \(bag, bike\).* give one of them, folder:.*amazon",
    ),
    "another class in test": (["train/a/ 1", "train/b/ 1", "test/c/ 1"], "test class 'c' is not known.*Allowed: a, b"),
    "class linked to its top": (["a/ 5", "b/ 5", "all -> ."], "are one file .a link., of the classes 'a' and 'all'; take one away"),
    "class linked to a class": (["a/ 5", "b -> a"], "are one file .a link., of the classes 'a' and 'b'"),
    "not UTF-8": (["caf\udce9/ 2", "tea/ 2"], r"class 'caf\?' has a name that is not UTF-8; rename it"),
    "a missing image": (["images/ 2", "labels.csv < image,label|0.png,a|7.png,b"], r"labels.csv line 3: image '7.png' is not there"),
    "an image with two labels": (
        ["images/ 2", "labels.csv < image,label|0.png,a|1.png,b|0.png,b"],
        "line 4: image '0.png' is 'b' .* and 'a'",
    ),
    "no label": (["images/ 2", "labels.csv < image,label|0.png,a|1.png,"], "line 3: has no label"),
    "names that are not unique": (
        ["x/ 1", "y/ 1", "labels.csv < image,label|0.png,a"],
        "image '0.png' may be .*x/0.png or .*y/0.png; write its path",
    ),
    "unknown split": (
        ["images/ 2", "labels.csv < image,label,split|0.png,a,train|1.png,b,public"],
        "split 'public' is not known; allowed: train, test, val",
    ),
    "splits of some": (["images/ 2", "labels.csv < image,label,split|0.png,a,train|1.png,b,"], "1 labelled images are in no split"),
    "two tables": (
        ["images/ 1", "a.csv < image,label|0.png,a", "b.csv < image,label|0.png,b"],
        "both a.csv and b.csv have a label for 0.png",
    ),
    "a label for each image": (
        ["images/ 30", "labels.csv < image,label|" + "|".join(f"{i}.png,{i * 0.37:.3f}" for i in range(30))],
        "30 different labels for 30 images; allowed: a column of classes",
    ),
    "Latin-1 table": (["images/ 1", "labels.csv < image,label|0.png,caf\udce9"], "labels.csv is not UTF-8 text; save it as CSV UTF-8"),
    "table that leaves the folder": (
        ["secret.png", "set/images/ 1", "set/labels.csv < image,label|../secret.png,a|0.png,a in set"],
        "'../secret.png' is not there",
    ),
    "nothing": (["readme.txt < x"], "has no class folders and no images"),
    "empty folders": (["a/", "b/"], r"its folders \(a and b\) hold no images"),
}


def build(top: Path, lines: list[str]) -> None:
    """The layout that these lines describe; each image has pixels of its own."""
    made = 0
    for line in lines:
        name, _, count = line.rpartition("/ ")
        if " -> " in line:
            link, target = line.split(" -> ")
            (top / link).parent.mkdir(parents=True, exist_ok=True)
            (top / link).symlink_to(target)
        elif " < " in line:
            file, text = line.split(" < ")
            (top / file).parent.mkdir(parents=True, exist_ok=True)
            (top / file).write_bytes(text.replace("|", "\n").encode("utf-8", "surrogateescape"))
        elif " = " in line:
            file, source = line.split(" = ")
            (top / file).parent.mkdir(parents=True, exist_ok=True)
            (top / file).write_bytes((top / source).read_bytes())
        elif line.endswith("/"):
            (top / line).mkdir(parents=True)
        else:
            for file in [f"{name}/{i}.png" for i in range(int(count))] if name else [line]:
                made += 1
                (top / file).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.random.default_rng(made).integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(top / file)


def read_as(data: ImageData) -> str:
    """What data hold, as the tables above say it."""
    names = data.spec.classes
    parts = [(part, getattr(data, "validation" if part == "val" else part)) for part in ("train", "test", "val")]
    counts = [
        f"{part} {' '.join(str(n) for n in torch.bincount(split.labels, minlength=len(names)).tolist())}"
        for part, split in parts
        if len(split)
    ]
    return f"{(',' if any(' ' in name for name in names) else ' ').join(names)}: {', '.join(sorted(counts))}"


@pytest.mark.parametrize("name", READ)
def test_a_layout_is_read_as_it_was_meant(tmp_path, name):
    lines, expected, note = READ[name]
    build(tmp_path, lines)
    expected, _, inner = expected.partition(" in ")
    data = load(f"folder:{tmp_path / inner}")
    classes, _, counts = expected.partition(": ")
    assert read_as(data) == f"{classes}: {', '.join(sorted(counts.split(', ')))}"
    assert bool(data.notes) == (note is not None), data.notes
    if note is not None:
        assert any(re.search(note, one) for one in data.notes), data.notes
    assert all("\n" not in one and one.endswith(".") for one in data.notes)


@pytest.mark.parametrize("name", REFUSED)
def test_a_layout_is_refused_with_what_to_do(tmp_path, name):
    lines, words = REFUSED[name]
    build(tmp_path, [line.removesuffix(" in set") for line in lines])
    inner = tmp_path / "set" if any(line.endswith(" in set") for line in lines) else tmp_path
    with pytest.raises(InputError, match=words) as caught:
        load(f"folder:{inner}")
    assert str(caught.value).startswith(f"folder:{inner}: ")
    assert "\n" not in str(caught.value)


def test_a_turned_photograph_is_read_upright(tmp_path):
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[:2, :3], pixels[:2, 3:], pixels[2:, :3] = 255, 120, 60
    (tmp_path / "a").mkdir()
    # What a camera stores for an upright picture: the pixels that the orientation's turn makes upright again (EXIF 2.3, tag 274).
    stored = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels),
        7: pixels.transpose(1, 0, 2)[::-1, ::-1],
        8: np.rot90(pixels, -1),
    }
    for orientation, turned in stored.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(np.ascontiguousarray(turned)).save(tmp_path / "a" / f"{orientation}.png", exif=exif)
    data = load(f"folder:{tmp_path}")
    for image in (*data.train.images, *data.test.images):
        assert np.array_equal(image.numpy().transpose(1, 2, 0), pixels)
    broken = Image.Exif()
    broken[0x0112] = 99
    Image.fromarray(pixels).save(tmp_path / "a" / "9.png", exif=broken)
    assert len(load(f"folder:{tmp_path}").train) == 7


def test_what_a_folder_makes_can_be_saved_and_loaded(tmp_path):
    """Names that reach the file are checked or replaced, wherever they come from."""
    top = tmp_path / "caf\udce9"
    build(top, ["tea/ 3", "tea/caf\udce9.png", "Кофе/ 3"])
    data = load(f"folder:{top}")
    assert (data.spec.name, data.spec.classes) == ("caf?", ("tea", "Кофе"))
    images = data.normalised("train", torch.arange(2))
    CondensedSet(images, data.train.labels[:2], data.spec).save(tmp_path / "set.safetensors")
    assert CondensedSet.load(tmp_path / "set.safetensors").spec == data.spec


def test_a_folder_that_may_not_be_read_is_one_line(tmp_path, monkeypatch):
    build(tmp_path, ["a/ 2"])

    def forbidden(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(image_files.os, "scandir", forbidden)
    with pytest.raises(InputError, match=r"cannot be read .Permission denied: .*"):
        load(f"folder:{tmp_path}")


# What is read of each file


def test_folder_with_train_test_and_val(tmp_path):
    top = tmp_path / "pets"
    cat, dog, deep = (picture(top / "train" / n, seed=s) for n, s in (("cat/b.png", 1), ("dog/a.png", 2), ("cat/more/a.PNG", 3)))
    held = picture(top / "test" / "dog" / "t.png", seed=4)
    (top / "train" / "cat" / "notes.txt").write_text("not an image")
    (top / "train" / ".hidden").mkdir()
    data = load(f"folder:{top}")
    assert (data.spec.name, data.spec.classes) == ("pets", ("cat", "dog"))
    assert torch.equal(data.train.images, torch.from_numpy(np.stack([cat, deep, dog])).permute(0, 3, 1, 2))
    assert data.train.labels.tolist() == [0, 0, 1]
    assert torch.equal(data.test.images, torch.from_numpy(held[None]).permute(0, 3, 1, 2))
    assert len(data.validation) == 0

    own = picture(top / "val" / "cat" / "v.png", seed=5)
    data = load(f"folder:{top}")
    assert torch.equal(data.validation.images[0], torch.from_numpy(own).permute(2, 0, 1))
    assert data.test.labels.tolist() == [1]
    with pytest.raises(InputError, match="already has 1 validation images"):
        load(f"folder:{top}", validation=0.5)
    (top / "test" / "dog" / "t.png").unlink()
    (top / "test" / "dog").rmdir()
    (top / "test").rmdir()
    data = load(f"folder:{top}")
    assert (data.test.labels.tolist(), len(data.validation)) == ([0], 0)

    picture(top / "val" / "cow" / "v.png")
    with pytest.raises(InputError, match=r"val class 'cow' is not known.*Allowed: cat, dog"):
        load(f"folder:{top}")


def test_folder_without_parts_keeps_a_fifth_of_each_class_for_the_test(tmp_path):
    counts = {"a": 10, "b": 3, "c": 1, "d": 0}
    for number, (name, count) in enumerate(counts.items()):
        (tmp_path / name).mkdir()
        for i in range(count):
            Image.fromarray(np.full((2, 2, 3), 20 * number + i, np.uint8)).save(tmp_path / name / f"{i}.png")
    tests = set()
    for seed in range(5):
        data, again = load(f"folder:{tmp_path}", seed=seed), load(f"folder:{tmp_path}", seed=seed, validation=0.2)
        assert torch.bincount(data.test.labels, minlength=3).tolist() == [2, 1, 0]
        assert data.counts == (8, 2, 1)
        assert any(note.endswith("without images are left out: d.") for note in data.notes)
        seen = sorted(int(i[0, 0, 0]) for s in (data.train, data.test) for i in s.images)
        assert seen == [*range(10), 20, 21, 22, 40]
        assert torch.equal(data.test.images, again.test.images)
        tests.add(tuple(data.test.images[:, 0, 0, 0].tolist()))
    assert len(tests) > 1


def test_folder_grey_stays_grey_only_if_all_are(tmp_path):
    first, second = picture(tmp_path / "a" / "1.png", mode="L", seed=1), picture(tmp_path / "a" / "2.png", mode="L", seed=2)
    data = load(f"folder:{tmp_path}")
    assert data.spec.channels == 1
    assert {i.numpy().tobytes() for i in (*data.train.images, *data.test.images)} == {first.tobytes(), second.tobytes()}
    colour = picture(tmp_path / "a" / "3.png", seed=3)
    data = load(f"folder:{tmp_path}")
    expected = {np.moveaxis(p if p.ndim == 3 else np.stack([p] * 3, -1), 2, 0).tobytes() for p in (first, second, colour)}
    assert {i.numpy().tobytes() for i in (*data.train.images, *data.test.images)} == expected


@pytest.mark.parametrize("mode", ["1", "LA", "RGBA", "P", "CMYK"])
def test_folder_reads_eight_bit_modes(tmp_path, mode):
    suffix = "tif" if mode == "CMYK" else "png"
    pixels = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    (tmp_path / "a").mkdir()
    options = {"transparency": bytes(range(200))} if mode == "P" else {}
    for name in "xy":
        image.save(tmp_path / "a" / f"{name}.{suffix}", **options)
    data = load(f"folder:{tmp_path}")
    grey = mode in ("1", "LA")
    expected = np.asarray(image.convert("L" if grey else "RGB"))
    assert data.train.images[0].numpy().tolist() == (expected[None] if grey else expected.transpose(2, 0, 1)).tolist()


def test_folder_sizes(tmp_path):
    from torchvision.transforms import functional

    (tmp_path / "a").mkdir()
    wide, tall = picture(tmp_path / "a" / "wide.png", 12, 8), picture(tmp_path / "a" / "tall.png", 6, 10, seed=1)
    with pytest.raises(InputError, match=r"tall\.png is 6 x 10.* 12 x 8|12 x 8.* 6 x 10") as caught:
        load(f"folder:{tmp_path}")
    assert "give a size" in str(caught.value)
    data = load(f"folder:{tmp_path}", size=5)
    expected = {
        np.asarray(functional.center_crop(functional.resize(Image.fromarray(p), 5), [5, 5])).transpose(2, 0, 1).tobytes()
        for p in (wide, tall)
    }
    assert {i.numpy().tobytes() for i in (*data.train.images, *data.test.images)} == expected
    assert data.spec.shape == (3, 5, 5)


def test_folder_refusals(tmp_path, monkeypatch):
    def refused(message, path=tmp_path, **options):
        with pytest.raises(InputError, match=message):
            load(f"folder:{path}", **options)

    refused("is not a folder", tmp_path / "absent")
    refused("has no class folders")
    (tmp_path / "a").mkdir()
    refused("hold no images")
    picture(tmp_path / "a" / "good.png")
    picture(tmp_path / "a" / "also.png")
    assert load(f"folder:{tmp_path}").counts == (1,)
    cut = (tmp_path / "a" / "good.png").read_bytes()
    for content in (b"", b"text", cut[: len(cut) // 2], cut[:40] + b"\0" * 20 + cut[60:]):
        (tmp_path / "a" / "broken.png").write_bytes(content)
        refused(r"broken\.png cannot be read as an image")
    (tmp_path / "a" / "broken.png").unlink()
    Image.fromarray(np.zeros((6, 6), np.uint16)).save(tmp_path / "a" / "deep.png")
    refused(r"deep\.png has pixels of mode I;16; allowed: 8 bits")
    (tmp_path / "a" / "deep.png").unlink()
    monkeypatch.setattr(image_files, "MAX_ARRAY_BYTES", 100)
    refused("2 images of 6 x 6 take more than 100 bytes")
    monkeypatch.undo()
    picture(tmp_path / "only" / "train" / "a" / "1.png")
    refused(r"has train/ but no test/ or val/; add one, or give folder:.*train", tmp_path / "only")
