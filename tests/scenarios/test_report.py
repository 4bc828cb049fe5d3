"""Reports: one file that loads nothing, small enough to be sent, readable on a telephone; what was asked, found and not run."""

import base64
import html.parser
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distill.errors import InputError
from distill.figures import image_grid
from scenarios.catalogue import KINDS, run_study, study
from scenarios.engine.scenario import parse, shipped
from scenarios.engine.study import Options, View
from scenarios.reporting import page, report
from tests.distill.test_figures import coloured
from tests.scenarios.browser import BROWSER, BROWSERS, opened
from tests.scenarios.test_cli import SCENARIO

VOID = {"meta", "img", "br", "hr"}


class Page(html.parser.HTMLParser):
    """A page's elements with their ancestors; every tag must be closed by its own end, unless HTML closes it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.boxes: list[dict[str, str | None]] = []
        self.found: list[tuple[str, dict[str, str | None], list[dict[str, str | None]]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.found.append((tag, given, list(self.boxes)))
        if tag not in VOID:
            self.open.append(tag)
            self.boxes.append({"tag": tag, **given})

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.boxes.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data + " "

    def all(self, tag: str) -> list[tuple[dict[str, str | None], list[dict[str, str | None]]]]:
        return [(given, boxes) for name, given, boxes in self.found if name == tag]


def checked(path: Path) -> Page:
    """The page, when it is one that can be sent to anybody."""
    raw = path.read_bytes()
    assert len(raw) < 5_000_000
    text = raw.decode()
    found = Page(text)
    bare = re.sub(r"src='data:image/png;base64,[A-Za-z0-9+/=]*'", "", text)
    assert not re.search(r"https?:|//[a-z]|url\(|@import|<script|<link|<iframe|<object|javascript:|\son\w+=", bare, re.I)
    assert not any(name in given for _, given, _ in found.found for name in ("href", "srcset", "action", "data", "background"))
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in [given for given, _ in found.all("meta")]
    assert found.all("html")[0][0] == {"lang": "en"}
    assert len(found.all("h1")) == 1
    for _, boxes in found.all("table"):
        assert any(box.get("class") == "wide" for box in boxes), "a table outside a scrolling box"
    for given, _ in found.all("img"):
        assert given["alt"]
        kind, _, data = str(given["src"]).partition(",")
        assert kind == "data:image/png;base64"
        with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as image:
            image.load()
            assert image.width / image.height == pytest.approx(int(given["width"] or 0) / int(given["height"] or 0), rel=0.05)
    style = text.partition("<style>")[2].partition("</style>")[0]
    assert "color-scheme: light dark" in style
    assert re.search(r"\.wide \{[^}]*overflow-x: auto", style)
    assert re.search(r"img \{[^}]*max-width: 100%", style)
    # Nothing has a width of its own that a telephone of 390 px could not give.
    assert all(float(rem) <= 10 for rem in re.findall(r"(?<!max-)width: ([\d.]+)rem", style))
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two seeds of a small study of digits, with two networks and all kinds of figures."""
    place = tmp_path_factory.mktemp("report")
    (place / "tiny.toml").write_text(SCENARIO)
    made = study("tiny", parse(place / "tiny.toml"), "tiny.toml")
    return [run_study(made, Options(place / "out", seed=seed, quiet=True))[0] for seed in (0, 1)]


def test_one_run_is_told_from_the_question_to_what_was_not_run(runs: list[Path]) -> None:
    found = checked(runs[0] / "report.html")
    assert len(found.all("img")) == 5
    assert "Tiny & quick" in found.text
    assert "How well do networks (ConvNetD1W32 and MLP) learn from 1 and 2 images a class that dm makes of digits, " in found.text
    record = json.loads((runs[0] / "record.json").read_text())
    assert KINDS["condense"].view.answer(record) in found.text
    mean = record["results"]["ipc1"]["accuracy"]["dm"]["mean"]
    assert f"{mean:.1f} ±" in found.text
    assert "Not run" not in found.text, "both bounds, two networks and two seeds are there"
    assert '"batch_real": 8' in found.text


def test_figures_have_headings_captions_and_legends(runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = checked(runs[0] / "report.html")
    for words in (
        "Images of the set by dm at ipc 1",
        "Test accuracy: Tiny & quick, ipc 2",
        "One image a class.",
        "The method's loss at the steps",
    ):
        assert words in found.text
    place = copied(runs[0], tmp_path / "named")
    names = ["<b>数字", "cat"]
    image_grid(coloured([1, 1], names), "Two <classes>").save(place / "figures/images-ipc1.png")
    for side in (None, 400):  # the words stay where figures must get smaller
        if side:
            monkeypatch.setattr(page, "MAX_BYTES", 500_000)
            for number in range(3):
                (place / f"figures/noise-{number}.png").write_bytes(noise(side, number))
        report.write_report([place], tmp_path / "page.html", KINDS)
        page_text = (tmp_path / "page.html").read_text()
        assert "<h3>Two &lt;classes&gt;</h3>" in page_text
        assert "<ul><li>0: &lt;b&gt;数字</li><li>1: cat</li></ul>" in page_text
        checked(tmp_path / "page.html")


def test_why_a_run_ended_early_is_at_the_top(runs: list[Path], tmp_path: Path) -> None:
    for status, words in (("failed", "This run failed: disk <full>"), ("interrupted", "This run was interrupted: disk <full>")):
        place = copied(runs[0], tmp_path / status, {"status": status, "reason": "disk <full>"})
        report.write_report([place], tmp_path / "page.html", KINDS)
        text = checked(tmp_path / "page.html").text
        assert text.index("Tiny & quick") < text.index(words) < text.index("How well do")
    assert "This run" not in checked(runs[0] / "report.html").text


def test_print_clips_no_table(runs: list[Path]) -> None:
    style = (runs[0] / "report.html").read_text().partition("@media print {")[2].partition("</style>")[0]
    assert re.search(r"\.wide \{[^}]*overflow: visible", style)
    assert re.search(r"td:first-child \{[^}]*position: static", style)
    assert re.search(r"th, td \{[^}]*white-space: normal", style)


def test_several_runs_stand_side_by_side(runs: list[Path], tmp_path: Path) -> None:
    report.write_report([*runs, runs[0]], tmp_path / "both.html", KINDS)
    found = checked(tmp_path / "both.html")
    assert "2 runs side by side" in found.text
    assert len(found.all("img")) == 10
    heads = re.findall(r"<tr><th></th><th>tiny, seed 0</th><th>tiny, seed 1</th></tr>", (tmp_path / "both.html").read_text())
    assert len(heads) == 1
    values = [json.loads((run / "record.json").read_text())["results"]["ipc2"]["accuracy"]["dm"] for run in runs]
    cells = "".join(f"<td>{row['mean']:.4g} ({row['low']:.4g} to {row['high']:.4g})</td>" for row in values)
    assert f"<td>ipc2.accuracy.dm</td>{cells}" in (tmp_path / "both.html").read_text()
    assert "Mean and 95 % interval over seeds" in found.text
    alts = [given["alt"] for given, _ in found.all("img")]
    assert alts[:2] == ["accuracy-ipc1, tiny, seed 0", "accuracy-ipc1, tiny, seed 1"]


def copied(run: Path, place: Path, record: dict[str, Any] | None = None, config: dict[str, Any] | None = None) -> Path:
    shutil.copytree(run, place)
    for name, changes in (("record.json", record), ("config.json", config)):
        path = place / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **(changes or {})}))
    return place


def noise(side: int, seed: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side * 2, 3), dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


def test_many_large_figures_still_make_a_small_page(runs: list[Path], tmp_path: Path) -> None:
    place = copied(runs[0], tmp_path / "run")
    for number in range(4):
        (place / f"figures/noise-{number}.png").write_bytes(noise(500, number))  # 1.5 MB each, and nothing to compress
    report.write_report([place], tmp_path / "page.html", KINDS)
    assert len(checked(tmp_path / "page.html").all("img")) == 9
    # Small enough as they are: the very bytes.
    report.write_report([runs[0]], tmp_path / "small.html", KINDS)
    figure = base64.b64encode((runs[0] / "figures/loss.png").read_bytes()).decode()
    assert figure in (tmp_path / "small.html").read_text()


def test_figures_that_fit_in_no_size_are_left_out_and_named(runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = copied(runs[0], tmp_path / "run")
    (place / "figures/damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    (place / "figures/noise.png").write_bytes(noise(500, 0))
    monkeypatch.setattr(page, "_SCALES", (1.0,))
    monkeypatch.setattr(page, "MAX_BYTES", 400_000)
    report.write_report([place], tmp_path / "page.html", KINDS)
    found = checked(tmp_path / "page.html")
    assert len(found.all("img")) == 5
    assert "Figures that are no pictures or do not fit into the page: damaged.png, noise.png." in found.text
    monkeypatch.setattr(page, "MAX_BYTES", 2_000)
    with pytest.raises(InputError, match=r"without a figure; allowed: 2000\. Give fewer runs"):
        report.write_report([place], tmp_path / "none.html", KINDS)


def test_a_record_of_somebody_else_cannot_bring_a_script(runs: list[Path], tmp_path: Path) -> None:
    evil = "<script>alert(1)</script><img src=http://x onerror=alert(1)>' &"
    place = copied(runs[0], tmp_path / "run", {"title": evil, "scenario": evil}, {"title": evil, "data": {"name": evil}})
    (place / "figures/loss.png").rename(place / "figures/a' onload='x.png")
    for folders in ([place], [place, runs[1]]):
        report.write_report(folders, tmp_path / "page.html", KINDS)
        found = Page((tmp_path / "page.html").read_text())
        assert found.all("script") == []
        assert all(set(given) <= {"alt", "width", "height", "src"} for given, _ in found.all("img"))
        assert "<script>alert(1)" in found.text


def test_what_is_missing_is_said(runs: list[Path], tmp_path: Path) -> None:
    record, config = (json.loads((runs[0] / name).read_text()) for name in ("record.json", "config.json"))
    view = KINDS["condense"].view
    assert report.missing(record, config, view) == []
    judged = config["evaluation"]
    alone = {**config, "evaluation": {**judged, "baselines": [], "networks": ["MLP"], "seeds": 1, "split": "validation"}}
    assert report.missing({**record, "status": "interrupted"}, alone, view) == [
        "The run is not finished (status interrupted); the figures are those of what was.",
        "No comparison with random images.",
        "No comparison with the full training set.",
        "No other architecture than MLP was trained.",
        "One network only, so there is no interval.",
        "The test images were not used: the figures are those of the validation split.",
    ]
    assert report.missing(record, {**config, "evaluation": None}, view) == [
        "No network was trained on the sets: the study has no [evaluation] table."
    ]
    half = {"ipc1": {"accuracy": {"dm": record["results"]["ipc1"]["accuracy"]["dm"]}}}
    assert report.missing({**record, "results": half}, config, view)[:2] == [
        "No set at IPC 2.",
        "Not evaluated at IPC 1: random and whole.",
    ]
    place = copied(runs[0], tmp_path / "run", {"status": "failed", "results": {}})
    report.write_report([place], tmp_path / "page.html", KINDS)
    assert "Not run" in checked(tmp_path / "page.html").text
    assert report.missing(record, {"kind": "condense"}, view) == ["What else was left out cannot be read from this configuration."]


def test_what_an_interval_is_over_is_said_by_the_kind() -> None:
    usual = View(lambda record: "", lambda record: []).note
    assert {kind for kind in KINDS if KINDS[kind].view.note == usual} <= {"condense", "privacy", "released"}, "over networks, there"


@pytest.mark.parametrize("name", sorted(shipped()))
def test_every_shipped_study_asks_a_question(name: str) -> None:
    made = study(name, parse(shipped()[name]), name)
    config = {"scenario": name, "title": made.title, "seed": 0, "device": "cpu", **made.merged}
    view = KINDS[made.kind].view
    asked = report.question(config, view)
    assert asked.endswith("?")
    assert asked != made.title
    missing = report.missing({"status": "running", "results": {}}, config, view)
    assert missing[0].startswith("The run is not finished")
    assert not any("cannot be read" in line for line in missing)


LAYOUT = """(() => {
  const root = document.documentElement, seen = [...document.querySelectorAll('body, p, td, th, h1, h2, a, code, summary')];
  const colour = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const canvas = document.createElement('i');
  canvas.style.background = 'Canvas';
  document.body.append(canvas);
  const ground = element => {
    for (let at = element; at; at = at.parentElement) {
      const found = colour(getComputedStyle(at).backgroundColor);
      if (found.length === 3 || found[3] > 0.5) return light(found);
    }
    return ground(canvas);
  };
  const contrast = element => {
    const [a, b] = [light(colour(getComputedStyle(element).color)), ground(element)];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  };
  return {
    wide: root.clientWidth, scrolls: root.scrollWidth, height: root.scrollHeight, ground: ground(document.body),
    images: document.images.length, broken: [...document.images].filter(i => !i.complete || !i.naturalWidth).length,
    out: [...document.querySelectorAll('body *')].filter(e => !e.closest('.wide table'))
      .filter(e => e.getBoundingClientRect().right > root.clientWidth + 0.5).map(e => e.tagName),
    letters: document.body.innerText.length,
    faint: seen.filter(e => e.innerText && contrast(e) < 4.5).map(e => [e.tagName, contrast(e), e.innerText.slice(0, 40)]),
    small: seen.filter(e => e.innerText && parseFloat(getComputedStyle(e).fontSize) < 11).map(e => e.tagName),
  };
})()"""


@pytest.mark.skipif(BROWSER is None, reason=f"no browser is installed (DISTILL_BROWSER, or one of {', '.join(BROWSERS)})")
def test_in_a_browser(runs: list[Path], tmp_path: Path) -> None:
    """On a telephone and on a screen, light and dark: no word on the console, nothing loaded, images there, tables scroll inside the page,
    letters stand out from their ground (WCAG's 4.5)."""
    report.write_report(runs, tmp_path / "both.html", KINDS)
    with opened(tmp_path / "profile") as tab:
        for source in (runs[0] / "report.html", tmp_path / "both.html"):
            grounds = {}
            for width, dark in ((390, False), (390, True), (1200, False)):
                tab.visit(source.as_uri(), width, dark)
                found = tab.value(LAYOUT)
                assert tab.complaints() == []
                assert tab.asked_for() == [source.as_uri()]
                assert found["wide"] <= width
                assert found["scrolls"] <= width, "the page scrolls sideways"
                assert (found["broken"], found["out"], found["faint"], found["small"]) == (0, [], [], [])
                assert found["images"] == len(Page(source.read_text()).all("img"))
                assert found["height"] > 500
                assert found["letters"] > 500, "the browser has no fonts"
                grounds[width, dark] = found["ground"]
            assert grounds[390, True] < 0.2 < 0.8 < grounds[390, False]
