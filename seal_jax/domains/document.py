"""A document of one's own (Markdown, plain text, PDF) as passages that a model can learn one by one.

    read_document(path) -> Document(title, sections) -> passages(document, count=..., budget=...) -> [Passage]

A document is cut at its headings, within a section at paragraphs and list items, and only where one of these is longer
than the budget at sentences, then between words. No word is lost, added or moved.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from seal_jax.domains.passages import Passage
from seal_jax.domains.records import slug

TEXT, PDF = (".md", ".markdown", ".txt"), ".pdf"
MOST_TEXT = 4 * 2**20  # bytes of a text: some 700,000 words, more than one adapter learns
MOST_PDF = 64 * 2**20  # bytes of a PDF, pictures included

_FENCE = re.compile(r"^ {0,3}(```+|~~~+)")
_HEADING = re.compile(r"^ {0,3}(#{1,6})[ \t]+(.*?)[ \t]*#*[ \t]*$")
_UNDERLINE = re.compile(r"^ {0,3}(=+|-+)[ \t]*$")
_METADATA = re.compile(r"\s|-\s|#|$|[^\s:]+\s*:")  # how a line of YAML begins: indented, an item, a comment, a key
_CODE = re.compile(r"`([^`]+)`")
_HELD = re.compile("\x1a(\\d+)\x1a")  # stands for a piece of code; a text that was decoded has no such character
_ITEM = re.compile(r"^\s*(?:[-*+•|>]|\d{1,3}[.)])\s*\S")  # a list item, a quotation or a row of a table: its own line
_RULE = re.compile(r"^[\s|:*_=-]*$")  # a horizontal rule, the line under the head of a table
_SENTENCE = re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+")
_LETTER = re.compile(r"\w")
_ODD = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]")  # control characters that no text has


class Section(NamedTuple):
    """What stands under one heading."""

    title: str  # "Harbour handbook: The lamp"; the document's own where it has no headings
    units: tuple[str, ...]  # paragraphs, list items, rows of tables


class Document(NamedTuple):
    """A document that has been read."""

    title: str
    sections: tuple[Section, ...]

    @property
    def words(self) -> int:
        """How long it is."""
        return sum(len(unit.split()) for section in self.sections for unit in section.units)


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def read_document(path: str | Path) -> Document:
    """Reads a .md, .txt or .pdf file. Its title is its first top heading, a PDF's own, or else the file's name.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a folder, a format that is not read, a file that is empty, too large, binary, not UTF-8, or a PDF
            that is damaged, locked or without text; or pypdf is not installed.
    """
    file = Path(path).expanduser()
    if not file.exists():
        raise FileNotFoundError(f"{file}: no such file; expected a document, .md, .txt or .pdf")
    if not file.is_file():
        raise ValueError(f"{file}: not a file; expected one document, .md, .txt or .pdf")
    suffix, size = file.suffix.lower(), file.stat().st_size
    if suffix not in (*TEXT, PDF):
        raise ValueError(
            f"{file}: {suffix or 'a file without an ending'} is not read; expected .md, .txt or .pdf. Save it as one "
            "of these"
        )
    most = MOST_PDF if suffix == PDF else MOST_TEXT
    if size > most:
        raise ValueError(
            f"{file}: {size / 2**20:,.1f} MiB; at most {most / 2**20:.0f} MiB of {suffix} are read. An adapter learns "
            "pages, not libraries: cut out the part that matters"
        )
    if size == 0:
        raise ValueError(f"{file}: empty (0 bytes); expected a text")
    name = " ".join(re.split(r"[\s_-]+", file.stem)).strip() or "Document"
    content = file.read_bytes()
    if suffix == PDF:
        title, text = _read_pdf(content, file)
        document = Document(title or name, (Section(title or name, tuple(_units(text))),))
    else:
        document = parse(_decode(content, file), name=name, markdown=suffix != ".txt")
    if not any(_LETTER.search(unit) for section in document.sections for unit in section.units):
        raise ValueError(f"{file}: no text ({size:,} bytes of blanks, marks or headings alone); expected sentences")
    return document


def _decode(content: bytes, file: Path) -> str:
    """Bytes as UTF-8 text, or an error that says what they are instead."""
    for mark, encoding in ((b"\xff\xfe", "UTF-16LE"), (b"\xfe\xff", "UTF-16BE")):
        if content.startswith(mark):
            raise ValueError(
                f"{file}: {encoding}, as its first two bytes say; expected UTF-8. Convert it: "
                f"iconv -f {encoding} -t UTF-8 {file.name} > utf8{file.suffix}"
            )
    if content.startswith(b"%PDF-"):
        raise ValueError(f"{file}: a PDF by its content; rename it to {file.stem}.pdf")
    at = content.find(b"\0")
    if at >= 0:
        raise ValueError(f"{file}: binary (a zero at byte {at:,}), not a text; expected UTF-8 text or a .pdf")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start]
        line = before.count(b"\n") + 1
        raise ValueError(
            f"{file}: not UTF-8 (byte 0x{content[error.start]:02x} at byte {error.start:,}, line {line}). If it is "
            f"Latin-1 or Windows-1252, convert it: iconv -f WINDOWS-1252 -t UTF-8 {file.name} > utf8{file.suffix}"
        ) from error
    odd = _ODD.findall(text)
    if len(odd) > len(text) / 1000:
        raise ValueError(f"{file}: binary ({len(odd):,} control characters), not a text; expected UTF-8 text or a .pdf")
    return _ODD.sub("", text)


def _read_pdf(content: bytes, file: Path) -> tuple[str, str]:
    """A PDF's own title ("" without one) and its text, a page after another."""
    if not content.lstrip()[:5] == b"%PDF-":
        raise ValueError(f"{file}: no PDF (it begins with {content[:8]!r}); is it a text? Then name it .txt or .md")
    try:
        import pypdf
    except ImportError as error:
        raise ValueError(
            f"{file}: reading a .pdf needs pypdf, which is not installed: pip install 'seal_jax[pdf]'; or save the "
            "document as .txt"
        ) from error
    import io
    import logging

    logging.getLogger("pypdf").setLevel(logging.ERROR)  # it warns of every oddity it mends
    try:
        reader = pypdf.PdfReader(io.BytesIO(content))
        locked = reader.is_encrypted and not reader.decrypt("")
        pages = [] if locked else [page.extract_text() for page in reader.pages]
        title = "" if locked or not reader.metadata else (reader.metadata.title or "").strip()
    except Exception as error:  # a damaged file fails in many ways: pypdf's own, KeyError, RecursionError, zlib's
        raise ValueError(
            f"{file}: not a readable PDF ({type(error).__name__}: {error}); open it and save it again, or save its "
            "text as .txt"
        ) from error
    if locked:
        raise ValueError(f"{file}: locked with a password; save a copy without one")
    if not any(_LETTER.search(page) for page in pages):
        raise ValueError(
            f"{file}: {len(pages)} pages without any text: probably pictures of pages; run text recognition (OCR) on "
            "it first"
        )
    joined = re.sub(r"(?<=\w)[-\u00ad]\n(?=[a-z])", "", "\n\n".join(pages))  # words divided at the end of a line
    return title, joined


def parse(text: str, *, name: str, markdown: bool) -> Document:
    """A text as sections. `name` is the title where no top heading gives one.

    Of Markdown the headings are read, `# so` and underlined; comments, pictures and addresses of links are left out.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n\n")
    if not markdown:
        return Document(name, (Section(name, tuple(_units(text))),))
    text = re.sub(r"<!--.*?-->", "", _without_metadata(text), flags=re.DOTALL)
    found = list(_headings(text))
    top = min((level for level, _, _ in found if level), default=0)
    tops = [heading for level, heading, _ in found if level == top and heading]
    title = tops[0] if len(tops) == 1 else name  # of several, none is the document's
    path: list[tuple[int, str]] = []
    sections = []
    for level, heading, body in found:
        if level:
            path = [*(pair for pair in path if pair[0] < level), (level, heading)]
        units = tuple(_units(body))
        if units:
            names = [heading for _, heading in path if heading]
            sections.append(Section(": ".join(names) if names else title, units))
    return Document(title, tuple(sections))


def _without_metadata(text: str) -> str:
    """Markdown without the YAML between `---` and `---` that may stand before it."""
    first, *lines = text.split("\n")
    if first.rstrip() == "---":
        for n, line in enumerate(lines):
            if line.rstrip() in ("---", "..."):
                return "\n".join(lines[n + 1 :])
            if not _METADATA.match(line):
                break
    return text


def _headings(text: str) -> Iterator[tuple[int, str, str]]:
    """(level, heading, the plain text that follows it), in order; level 0 for what comes before the first.

    Code between fences is no heading and stays as it is, four blanks before each line.
    """
    level, heading, body = 0, "", []
    fence = before = ""
    for line in text.split("\n"):
        mark = _FENCE.match(line)
        if mark and not fence:
            fence = mark[1]
            continue
        if fence:
            if mark and mark[1][0] == fence[0] and len(mark[1]) >= len(fence):
                fence = ""
                continue
            body.append(f"    {line}")
            continue
        hashed, underline = _HEADING.match(line), _UNDERLINE.match(line)
        if hashed:
            yield level, heading, "\n".join(body)
            level, heading, body = len(hashed[1]), _inline(hashed[2]), []
        elif underline and body and body[-1].strip() and not _ITEM.match(body[-1]) and len(_last_block(body)) == 1:
            body.pop()
            yield level, heading, "\n".join(body)
            level, heading, body = (1 if "=" in underline[1] else 2), _inline(before.strip()), []
        else:
            body.append(_inline(line))
        before = line
    yield level, heading, "\n".join(body)


def _last_block(lines: Sequence[str]) -> list[str]:
    """The lines since the last blank one."""
    block: list[str] = []
    for line in reversed(lines):
        if not line.strip():
            break
        block.append(line)
    return block


def _inline(line: str) -> str:
    """A line of Markdown without pictures, addresses of links, emphasis and marks of code. Code stays as it is."""
    held = _CODE.findall(line)
    numbers = itertools.count()
    line = _CODE.sub(lambda match: f"\x1a{next(numbers)}\x1a", line)
    line = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", line)
    line = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", line)
    line = re.sub(r"(\*\*|__)(?=\S)(.+?)(?<=\S)\1", r"\2", line)
    line = re.sub(r"(?<![\w*])\*(?=\S)([^*\n]+?)(?<=\S)\*(?![\w*])", r"\1", line)
    return _HELD.sub(lambda match: held[int(match[1])], line).rstrip()


def _units(text: str) -> Iterator[str]:
    """Paragraphs on one line each; items of a list, rows of a table and lines of code each for themselves."""
    for block in re.split(r"\n[ \t]*\n", text):
        lines: list[str] = []
        ruled = False
        for line in block.split("\n"):
            if _RULE.match(line):
                ruled = True
                continue
            joined = " ".join(line.split())
            if lines and not ruled and not _ITEM.match(line) and not line.startswith("    "):
                lines[-1] += f" {joined}"  # a paragraph, or an item, goes on
            else:
                lines.append(joined)
            ruled = False
        yield from lines


# ---------------------------------------------------------------------------------------------------------------------
# Passages


def passages(document: Document, *, count: Callable[[str], int], budget: int) -> list[Passage]:
    """The document as passages of at most `budget` tokens, as `count` counts them, in order; none has questions yet.

    Sections are never joined. Within one, passages are about equally long. A passage said twice is kept once.

    Raises:
        ValueError: a budget that a single word exceeds.
    """
    found: dict[tuple[str, str], Passage] = {}
    for section in document.sections:
        pieces = []
        for unit in section.units:
            first, *rest = _within(unit, count, budget)
            pieces += [f"\n{first}", *(f" {piece}" for piece in rest)]  # each with what parts it from the one before
        total = sum(count(piece) for piece in pieces)
        even = total / math.ceil(total / budget)  # so that no short rest is left at the end
        for text in _packed(pieces, count, budget, even):
            if _LETTER.search(text) and (section.title, text) not in found:
                found[section.title, text] = Passage(_identify(section.title, text), section.title, text, ())
    return list(found.values())


def _packed(pieces: Sequence[str], count: Callable[[str], int], budget: int, even: float) -> Iterator[str]:
    """Neighbours joined while they fit and the passage is not long enough yet."""
    text = ""
    for piece in pieces:
        longer = (text + piece).strip()
        if text and (count(text) >= 0.95 * even or count(longer) > budget):
            yield text
            longer = piece.strip()
        text = longer
    if text:
        yield text


def _within(text: str, count: Callable[[str], int], budget: int) -> list[str]:
    """A unit as it is where it fits, else its sentences, and of those that are too long parts, cut between words."""
    if count(text) <= budget:
        return [text]
    parts = sentences(text)
    if len(parts) == 1:
        words = text.split(" ")
        if len(text) == 1:
            raise ValueError(f"a passage of {budget} tokens cannot hold {text!r} ({count(text)}); raise the budget")
        middle = max(1, len(words) // 2)
        parts = [" ".join(words[:middle]), " ".join(words[middle:])]
        if len(words) == 1:  # an address, or text without blanks
            parts = [text[: len(text) // 2], text[len(text) // 2 :]]
    return [piece for part in parts for piece in _within(part, count, budget)]


def sentences(text: str) -> list[str]:
    """Each with the closing quotation marks that belong to it."""
    ends = [match.end() for match in _SENTENCE.finditer(text)]
    return [text[a:b].strip() for a, b in zip([0, *ends], [*ends, len(text)], strict=True) if text[a:b].strip()]


def _identify(title: str, text: str) -> str:
    """Readable and unique, as other passages' ids are."""
    name = slug(title)[-40:].strip("-") or "passage"
    content = f"{title}\n{text}"
    return f"{name}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"
