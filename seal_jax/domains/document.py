"""A document (Markdown, plain text, PDF) as passages that a model can learn one by one.

    read_document(path) -> Document(title, sections) -> passages(document, count=..., budget=...) -> [Passage]

A document is cut at its headings, within a section at paragraphs and list items, and only where one of these is longer
than the budget at sentences, then between words. No word is lost, added or moved.
"""

from __future__ import annotations

import io
import itertools
import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from markdown_it import MarkdownIt
from markdown_it.rules_core import StateCore
from markdown_it.token import Token

from seal_jax.domains.passages import Passage, identify, slug

TEXT, PDF = (".md", ".markdown", ".txt"), ".pdf"
MOST_TEXT = 4 * 2**20  # bytes of a text: some 700,000 words, more than one adapter learns
MOST_PDF = 64 * 2**20  # bytes of a PDF, pictures included
LARGER, LONGEST_HEADING = 1.1, 25  # a PDF's heading: times the size of most of its text, and words
WIDER = 1.25  # times the usual distance of two lines: a PDF's paragraph ends between them

_MARKDOWN = MarkdownIt("commonmark", {"html": False, "maxNesting": 100}).enable("table")
MOST_LINKS = 1000  # brackets in one paragraph: looking for links takes time with their square


def _read_inline(state: StateCore) -> None:
    """Emphasis, links and code within paragraphs; one with too many brackets is taken as plain text."""
    for token in state.tokens:
        if token.type == "inline":
            token.children = []
            if token.content.count("[") > MOST_LINKS:
                token.children = [Token("text", "", 0, content=token.content)]
            else:
                state.md.inline.parse(token.content, state.md, state.env, token.children)


_MARKDOWN.core.ruler.at("inline", _read_inline)
_METADATA = re.compile(r"\s|-\s|#|$|[^\s:]+\s*:")  # how a line of YAML begins: indented, an item, a comment, a key
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
        document = _in_sections(_read_pdf(content, file), name)
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


class _Part(NamedTuple):
    level: int  # of its heading; 0 for what comes before the first
    heading: str
    units: list[str]


class _Line(NamedTuple):
    """A line of a PDF's page."""

    text: str
    size: float  # of the type that most of it is set in, points
    gap: float  # points below the line before; infinite at the top of a page


def _read_pdf(content: bytes, file: Path) -> list[_Part]:
    """A PDF cut at its headings, under its own title if it has one."""
    if not content.lstrip()[:5] == b"%PDF-":
        raise ValueError(f"{file}: no PDF (it begins with {content[:8]!r}); is it a text? Then name it .txt or .md")
    try:
        import pypdf
    except ImportError as error:
        raise ValueError(
            f"{file}: reading a .pdf needs pypdf, which is not installed: pip install 'seal_jax[pdf]'; or save the "
            "document as .txt"
        ) from error
    logging.getLogger("pypdf").setLevel(logging.ERROR)  # it warns of every oddity it mends
    try:
        reader = pypdf.PdfReader(io.BytesIO(content))
        locked = reader.is_encrypted and not reader.decrypt("")
        pages = [] if locked else [_lines(page) for page in reader.pages]
        title = "" if locked or not reader.metadata else _own_title(reader.metadata.title or "")
    except Exception as error:  # a damaged file fails in many ways: pypdf's own, KeyError, RecursionError, zlib's
        raise ValueError(
            f"{file}: not a readable PDF ({type(error).__name__}: {error}); open it and save it again, or save its "
            "text as .txt"
        ) from error
    if locked:
        raise ValueError(f"{file}: locked with a password; save a copy without one")
    lines = [line for page in pages for line in page]
    if not any(_LETTER.search(line.text) for line in lines):
        raise ValueError(
            f"{file}: {len(pages)} pages without any text: probably pictures of pages; run text recognition (OCR) on "
            "it first"
        )
    return _parts_of_lines(lines, title)


def _lines(page: Any) -> list[_Line]:
    """The lines of a page that `pypdf` has read, in its order."""
    runs: list[tuple[str, float, float]] = []  # a text of one type, its size and height on the page

    def visit(text: str, page: Sequence[float], line: Sequence[float], font: Any, size: float) -> None:
        scale = math.hypot(*page[2:4]) * math.hypot(*line[2:4])
        height = line[4] * page[1] + line[5] * page[3] + page[5]
        first, *rest = text.split("\n")
        runs.extend((piece, round(size * scale, 1), height) for piece in (first, *(f"\n{piece}" for piece in rest)))

    page.extract_text(visitor_text=visit)
    lines, above = [], math.inf
    starts = [n for n, (text, *_) in enumerate(runs) if text.startswith("\n")]
    for begin, end in itertools.pairwise([0, *starts, len(runs)]):
        said = [(text.strip("\n"), size, height) for text, size, height in runs[begin:end] if text.strip()]
        if said:
            sizes = Counter[float]()
            for text, size, _ in said:
                sizes[size] += len(text)
            lines.append(_Line("".join(text for text, *_ in said), sizes.most_common(1)[0][0], above - said[0][2]))
            above = said[0][2]
    return lines


def _parts_of_lines(lines: Sequence[_Line], title: str) -> list[_Part]:
    """Headings are few words in larger type than most of the text; a paragraph begins below a wider gap than usual."""
    sizes = Counter[float]()
    for line in lines:
        sizes[line.size] += len(line.text)
    body = sizes.most_common(1)[0][0]
    gaps = sorted(line.gap for line in lines if line.size == body and 0 < line.gap < math.inf)
    usual = gaps[len(gaps) // 10] if gaps else 0.0  # few are between paragraphs, or most where these are short
    groups = [
        (size if size and sum(len(line.text.split()) for line in group) <= LONGEST_HEADING else 0.0, group)
        for size, same in itertools.groupby(lines, lambda line: line.size if line.size >= LARGER * body else 0.0)
        if (group := list(same))
    ]
    levels = sorted({size for size, _ in groups if size}, reverse=True)
    parts = [_Part(0, "", [])]
    for size, group in groups:
        if size:
            parts.append(_Part(1 + levels.index(size), " ".join(" ".join(line.text for line in group).split()), []))
        else:
            text = "".join(("\n\n" if line.gap > WIDER * usual else "\n") + line.text for line in group)
            text = re.sub(r"(?<=\w)[-\u00ad]\n(?=[a-z])", "", text)  # words divided at the end of a line
            parts[-1].units.extend(_units(text.strip("\n")))
    if title and title.casefold() not in [part.heading.casefold() for part in parts]:
        parts = [part._replace(level=1 + part.level, heading=part.heading or title) for part in parts]
    return parts


def _own_title(title: str) -> str:
    """A PDF's title as its author meant it; "" where a program has put a file's name, an address or a stand-in."""
    title = re.sub(r"^(?:Microsoft )?(?:Word|PowerPoint|Excel) - ", "", " ".join(title.split()))
    a_file = re.search(r"\.[A-Za-z][A-Za-z0-9]{1,4}$", title) or re.match(r"\w+://|/|[A-Za-z]:\\", title)
    stand_in = re.fullmatch(r"(?:untitled|document|slide|new document|title)[\s_-]*\d*", title, re.IGNORECASE)
    return "" if a_file or stand_in or not _LETTER.search(title) else title


def parse(text: str, *, name: str, markdown: bool) -> Document:
    """A text as sections. `name` is the title where no top heading gives one.

    In Markdown, headings are read in both forms, `# Heading` and underlined; comments, pictures and addresses of links
    are left out.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n\n")
    if not markdown:
        return Document(name, (Section(name, tuple(_units(text))),))
    before, end, after = _without_metadata(text).rpartition("-->")  # past which no comment ends
    return _in_sections(_parts(re.sub(r"<!--.*?-->", "", before + end, flags=re.DOTALL) + after), name)


def _in_sections(parts: Sequence[_Part], name: str) -> Document:
    """Parts as sections, each under the headings above it. The title: the one top heading, else `name`."""
    top = min((part.level for part in parts if part.level), default=0)
    tops = [part.heading for part in parts if part.level == top and part.heading]
    title = tops[0] if len(tops) == 1 else name  # of several, none is the document's
    path: list[_Part] = []
    sections = []
    for part in parts:
        if part.level:
            path = [*(above for above in path if above.level < part.level), part]
        if part.units:
            names = [above.heading for above in path if above.heading]
            sections.append(Section(": ".join(names) if names else title, tuple(part.units)))
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


def _parts(text: str) -> list[_Part]:
    """Markdown cut at its headings: paragraphs, list items, rows of tables and lines of code as plain text."""
    parts = [_Part(0, "", [])]
    mark = ""  # of the list items and quotations that begin with the next unit
    row: list[str] = []
    for before, token in itertools.pairwise([Token("", "", 0), *_MARKDOWN.parse(text)]):
        units: list[str] = []
        if token.type == "list_item_open":
            mark += f"{token.info}{token.markup} "
        elif token.type == "blockquote_open":
            mark += "> "
        elif token.type in ("list_item_close", "blockquote_close"):
            mark = ""  # of an empty one
        elif token.type == "inline" and before.tag in ("th", "td"):
            row.append(_plain(token))
        elif token.type == "tr_close":
            units, row = [f"| {' | '.join(row)} |"] if any(row) else [], []
        elif token.type in ("fence", "code_block"):
            units = [" ".join(line.split()) for line in token.content.split("\n") if not _RULE.match(line)]
        elif (
            token.type == "inline" and before.type == "heading_open" and not before.level and "\n" not in token.content
        ):
            parts.append(_Part(int(before.tag[1]), _plain(token), []))
        elif token.type == "inline":
            units = list(_units(_plain(token)))
        if units:
            parts[-1].units.extend([mark + units[0], *units[1:]])
            mark = ""
    return parts


def _plain(inline: Token) -> str:
    """Text without pictures, addresses of links, emphasis and marks of code."""
    pieces = [child for child in inline.children or () if child.type != "image"]
    return "".join("\n" if piece.tag == "br" else piece.content for piece in pieces)


def _units(text: str) -> Iterator[str]:
    """Paragraphs on one line each; items of a list and rows of a table each for themselves."""
    for block in re.split(r"\n[ \t]*\n", text):
        units: list[list[str]] = []  # the lines of each
        ruled = True
        for line in block.split("\n"):
            if not _RULE.match(line):
                if ruled or _ITEM.match(line) or line.startswith("    "):
                    units.append([])
                units[-1] += line.split()  # a paragraph, or an item, goes on
            ruled = bool(_RULE.match(line))
        yield from (" ".join(words) for words in units)


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
                found[section.title, text] = _passage(section.title, text)
    return list(found.values())


def _passage(title: str, text: str) -> Passage:
    return Passage(identify(slug(title)[-40:], f"{title}\n{text}"), title, text, ())


def _packed(pieces: Sequence[str], count: Callable[[str], int], budget: int, even: float) -> Iterator[str]:
    """Joins neighbouring pieces until a passage is long enough or the next piece does not fit."""
    text, size, near = "", 0, 0.8 * min(even, budget)
    for piece in pieces:
        longer = (text + piece).strip()
        if text and size + (most := len(piece.encode())) < near:  # no token is less than a byte: no need to count yet
            text, size = longer, size + most
            continue
        grown = count(longer)
        if text and (size >= 0.95 * even or grown > budget):
            yield text
            longer = piece.strip()
            grown = count(longer)
        text, size = longer, grown
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
