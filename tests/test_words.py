"""What users read (messages, reports, command help, scenario files, pages) has the field's words, such as baseline."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

WORDS = {  # pattern: what to write instead
    r"rivals?": "baseline",
    r"judg(?:e|es|ed|ing)": "evaluate; evaluation network",
    r"told|tells? apart": "given, printed, significant difference",
    r"so many": "this many, the number of",
    r"(?:go|goes|going|went) on\b(?! the)": "continue",
    r"house|rooms?(?! for\b)|floors?|windows?|crew|shelf": "package, layer, interface",
    r"whole (?:data|set|sets|training|record|study|space)": "full data, full training set, complete record",
    r"agrees? with itself": "noise ceiling",
    r"choice costs?": "regret",
    r"says so|enem(?:y|ies)|betrays?|giv(?:es?|en|ing) away": "is reported, untrusted, reveals",
    r"beside": "next to, compared with, in addition to",
    r"of (?:its|their|one's) own": "its own, separate",
    r"in the manner of|what is not there|without a word|as if an?": "as in, missing, silently",
    r"whoever|somebody|anybody": "a party, a user, everyone who",
    r"dealt out|deals? out": "distributed",
}
BANNED = re.compile(rf"(?<![\w`.-])(?:{'|'.join(WORDS)})(?![\w`-])", re.IGNORECASE)

ALLOWED = (  # a text that may hold a word, and why
    r"\bWindows\b",  # the operating system
    r"\bmake room there\b",  # on a full disk
    r"\bwhole data, naive\b",  # the name of a set in kept files
    r"\bhamster house kangaroo\b",  # a class of CIFAR-100
)


def found(text: str) -> list[str]:
    """The banned words in a text."""
    text = " ".join(text.split())
    for allowed in ALLOWED:
        text = re.sub(allowed, "", text)
    return BANNED.findall(text)


def in_python(text: str, command: bool = False) -> Iterator[tuple[int, str]]:
    """Sentences: string constants and f-strings of two words or more with their lines. Docstrings only of commands: their help.

    A constant without a space is a key, an option or a name, which stay as they are.
    """
    docstrings, parts = set(), set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and not (command and isinstance(node, ast.FunctionDef)):
                docstrings.add(first.value)
        elif isinstance(node, ast.JoinedStr):
            parts |= set(node.values)
            sentence = "".join(str(part.value) if isinstance(part, ast.Constant) else "0" for part in node.values)
            yield node.lineno, sentence
        elif (
            isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings | parts and " " in node.value.strip()
        ):
            yield node.lineno, node.value


def in_toml(text: str) -> Iterator[tuple[int, str]]:
    """Comments, lines of one comment joined, and titles."""
    for comment in re.finditer(r"(?:^[ \t]*#.*\n?)+|(?<=\s)#[^\"\n]*$|^(?:title|description) *=.*$", text, re.MULTILINE):
        yield text.count("\n", 0, comment.start()) + 1, comment[0].replace("#", " ")


def _blank(code: re.Match[str]) -> str:
    return "\n" * code[0].count("\n")


def in_page(text: str) -> Iterator[tuple[int, str]]:
    """Paragraphs and table rows, without code."""
    prose = re.sub(r"^```.*?^```$", _blank, text, flags=re.DOTALL | re.MULTILINE)
    prose = re.sub(r"(?<=\n\n)(?:(?: {4}.*)?\n)+", _blank, prose)
    for paragraph in re.finditer(r"(?:.+\n?)+", prose):
        yield prose.count("\n", 0, paragraph.start()) + 1, re.sub(r"`[^`]*`", "`", paragraph[0])


def everything(root: Path) -> Iterator[tuple[str, str]]:
    """(place, text) of all that can reach a user."""
    for folder in ("distill", "apps", "scenarios"):
        for path in sorted((root / folder).rglob("*.py")):
            command = path.parent.name == "commands" or path.name == "cli.py"
            yield from ((f"{path.relative_to(root)}:{line}", text) for line, text in in_python(path.read_text(), command))
    for path in sorted(path for folder in ("apps", "scenarios", "examples") for path in (root / folder).rglob("*.toml")):
        yield from ((f"{path.relative_to(root)}:{line}", text) for line, text in in_toml(path.read_text()))
    for path in [root / "README.md", root / "CONTRIBUTING.md", *sorted(root.glob("docs/*.md")), *sorted(root.glob("apps/*/README.md"))]:
        yield from ((f"{path.relative_to(root)}:{line}", text) for line, text in in_page(path.read_text()))


def test_what_users_read_has_the_fields_words() -> None:
    texts = list(everything(ROOT))
    for ending, least in ((".py", 1000), (".toml", 50), (".md", 200)):
        assert sum(ending in place for place, _ in texts) > least, f"the texts of {ending} files are not found"
    better = "\n".join(f"{word}: write {better}" for word, better in WORDS.items())
    assert [f"{place}: {word!r}" for place, text in texts for word in found(text)] == [], better


DOCSTRINGS = ("distill", "kept", "benchmarks")  # packages whose docstrings are checked, too


def test_docstrings_have_the_fields_words() -> None:
    texts = []
    for path in sorted(path for folder in DOCSTRINGS for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                texts.append((f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}", ast.get_docstring(node) or ""))
    assert sum(bool(text) for _, text in texts) > 300
    assert [f"{place}: {word!r}" for place, text in texts for word in found(text)] == []


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ('raise InputError(f"{path}: is not a whole record")', "whole record"),
        ('say(console, "the run goes "\n    "on")', "goes on"),
        ('x = {"question": f"{a}: {\'the whole set\' if b else c}"}', "whole set"),
        ('x: Annotated[int, typer.Option(help="How many judges to train.")]', "judges"),
    ],
)
def test_a_planted_word_is_found_in_code(text: str, word: str) -> None:
    assert [one for _, text in in_python(text) for one in found(text)] == [word]


def test_keys_and_docstrings_are_no_messages_but_a_commands_docstring_is() -> None:
    text = 'def run():\n    """Train the judges."""\n    return row["rival"], "judging", "whole"\n'
    assert [one for _, text in in_python(text) for one in found(text)] == []
    assert [one for _, text in in_python(text, command=True) for one in found(text)] == ["judges"]


def test_a_planted_word_is_found_in_scenarios_and_pages_outside_of_code() -> None:
    scenario = '# one recipe, the whole\n# set too\ntitle = "DM and its rivals"  # told\nkey = "judge"\n'
    assert [one for _, text in in_toml(scenario) for one in found(text)] == ["whole set", "rivals", "told"]
    page = "# Rivals\n\nA key `judging`.\n\n    distill run rival\n\n```sh\ntold\n```\n\n| the whole\nset | whole |\n"
    assert [(line, one) for line, text in in_page(page) for one in found(text)] == [(1, "Rivals"), (11, "whole set")]


@pytest.mark.parametrize(
    "text", ["a whole number", "no room for 2 items", "on Windows", "99,289 house-number digits", "it goes on the test split"]
)
def test_right_uses_pass(text: str) -> None:
    assert found(text) == []
