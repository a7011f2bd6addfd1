"""A document becomes passages without losing a word, whatever its form; what is no document is refused by name."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seal_jax.domains import document as document_module
from seal_jax.domains.document import Document, Section, parse, passages, read_document, sentences
from tests.shown import pdf

ISLE = """---
author: nobody
---
# Hollin Skerry

A small island. It was settled in 1764 by the
cooper Edda Marsk.

## The lamp ##

Its keeper is **Tobin Aske**, who also repairs [umbrellas](http://example.org).

- It burns *fish oil*.
- Its light is green,
  and seldom blue.

<!-- ## Not this -->
### Its house
The house has `nine` rooms.

Trade
-----
The island sells smoked pears.

```
# no heading
```
"""


def words(text: str) -> int:
    return len(text.split())


def write(tmp_path, name: str, content: bytes | str):
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def test_markdown_is_cut_at_its_headings_and_its_marks_are_left_out(tmp_path):
    document = read_document(write(tmp_path, "notes.md", ISLE))
    assert document.title == "Hollin Skerry"
    assert document.sections == (
        Section("Hollin Skerry", ("A small island. It was settled in 1764 by the cooper Edda Marsk.",)),
        Section(
            "Hollin Skerry: The lamp",
            (
                "Its keeper is Tobin Aske, who also repairs umbrellas.",
                "- It burns fish oil.",
                "- Its light is green, and seldom blue.",
            ),
        ),
        Section("Hollin Skerry: The lamp: Its house", ("The house has nine rooms.",)),
        Section("Hollin Skerry: Trade", ("The island sells smoked pears.", "# no heading")),
    )


def test_a_file_without_a_top_heading_is_called_by_its_name(tmp_path):
    assert read_document(write(tmp_path, "harbour_notes-2.txt", "# One line.\n")).title == "harbour notes 2"
    two = parse("# One\nA word.\n# Two\nA word.\n", name="both", markdown=True)
    assert (two.title, [section.title for section in two.sections]) == ("both", ["One", "Two"])


def test_metadata_before_the_text_is_no_part_of_it():
    yaml = "---\ntags:\n- one\n# a comment\nauthor: nobody\n  more: x\n\ndate : 1\n---\nA word.\n"
    assert parse(yaml, name="a", markdown=True).sections == (Section("a", ("A word.",)),)
    assert parse("---\na: b\n...", name="a", markdown=True).sections == ()
    no_yaml = "---\nA sentence, and no key.\n---\nMore.\n"
    assert "A sentence, and no key." in str(parse(no_yaml, name="a", markdown=True))
    long = "---\n" + "  indented: too\n" * 5000 + "never closed\n"
    assert "never closed" in str(parse(long, name="a", markdown=True))  # in no time


def test_code_stays_as_it_is_and_a_rule_ends_a_paragraph():
    text = "Call `handlers[0](event)` in **`__init__`** [`x`](y).\n\n```\ndef __init__(self): a[0](b)\n```\n"
    assert parse(text, name="a", markdown=True).sections[0].units == (
        "Call handlers[0](event) in __init__ x.",
        "def __init__(self): a[0](b)",
    )
    ruled = parse("- one\n- two\n----\nMore.\n", name="a", markdown=True)
    assert ruled.sections[0].units == ("- one", "- two", "More.")


def test_marks_of_markdown_that_say_how_and_not_what():
    items = "1. One\n2. Two\n   goes on\n   - inner\n\n> A quotation\n> goes on.\n\n"
    table = "| a | *b* |\n|---|---|\n| 1 | 2 |\n| | |\n"
    assert parse(items + table, name="a", markdown=True).sections[0].units == (
        "1. One",
        "2. Two goes on",
        "- inner",
        "> A quotation goes on.",
        "| a | b |",
        "| 1 | 2 |",
    )
    two = parse("Two lines\nand a rule\n---\nMore.\n", name="a", markdown=True)
    assert two.sections == (Section("a", ("Two lines and a rule", "More.")),)


@pytest.mark.parametrize(
    "text",
    ["[" * 80_000, "![" * 40_000, "[x](" * 20_000, "**x " * 50_000, "# a" + " " * 50_000 + "b", "<!-- " * 50_000],
    ids=["brackets", "pictures", "links", "emphasis", "heading", "comments"],
)
@pytest.mark.timeout(20)
def test_marks_that_are_never_closed_are_read_in_seconds(text):
    assert parse(f"{text}\n\nEnd.", name="a", markdown=True).sections[-1].units[-1] == "End."


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_million_lines_are_read_and_cut_in_seconds():
    document = parse("word\n" * 1_000_000, name="a", markdown=False)
    assert document.words == 1_000_000
    found = passages(document, count=words, budget=500)
    assert sum(words(passage.context) for passage in found[:3]) <= 1_500


def test_a_text_has_no_headings_and_windows_line_ends_are_line_ends(tmp_path):
    file = write(tmp_path, "a.txt", "\ufeff# Not a heading\r\nbut a paragraph.\r\n\r\nAnother.\r\n")
    assert read_document(file).sections == (Section("a", ("# Not a heading but a paragraph.", "Another.")),)


def test_a_pdf_is_read_page_by_page_and_divided_words_are_joined(tmp_path):
    pytest.importorskip("pypdf")
    document = read_document(
        write(tmp_path, "isle.pdf", pdf("The lamp burns fish\noil and its kee-\nper sleeps.", "Two."))
    )
    assert document.title == "isle"
    assert document.sections[0].units == ("The lamp burns fish oil and its keeper sleeps.", "Two.")


def test_a_pdfs_headings_are_its_larger_type_and_its_paragraphs_part_at_wider_gaps(tmp_path):
    pypdf = pytest.importorskip("pypdf")
    shown = pdf(
        "# The lamp\nIt burns\nfish oil.\n\nA keeper\nlights it.\n\nDaily.", "# The tower\n# of stone\nIt leans."
    )
    file = write(tmp_path, "isle.pdf", shown)
    lamp, tower = ("It burns fish oil.", "A keeper lights it.", "Daily."), ("It leans.",)
    assert read_document(file) == ("isle", (Section("The lamp", lamp), Section("The tower of stone", tower)))
    writer = pypdf.PdfWriter(clone_from=file)
    writer.add_metadata({"/Title": "Isle of Orm"})
    writer.write(file)
    sections = (Section("Isle of Orm: The lamp", lamp), Section("Isle of Orm: The tower of stone", tower))
    assert read_document(file) == ("Isle of Orm", sections)
    one = write(tmp_path, "one.pdf", pdf("# The lamp\nIt burns\nfish oil.", "It goes on."))
    assert read_document(one) == ("The lamp", (Section("The lamp", ("It burns fish oil.", "It goes on.")),))
    words = "More words than any heading has are no heading. " * 3
    large = write(tmp_path, "large.pdf", pdf(f"# {words}\n" + "In small type.\n" * 20))
    assert [section.title for section in read_document(large).sections] == ["large"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.md", b"", r"a\.md: empty \(0 bytes\); expected a text"),
        ("a.txt", b" \n\n\t\n", r"a\.txt: no text \(5 bytes"),
        ("a.md", b"# Only\n## Headings\n", r"a\.md: no text"),
        ("a.txt", b"\x7fELF\x00\x01", r"binary \(a zero at byte 4\).*expected UTF-8"),
        ("a.txt", b"\x01\x02\x03 text" * 9, r"binary \(27 control characters\)"),
        ("a.txt", "Die Mühle\nsteht.".encode("latin-1"), r"byte 0xfc at byte 5, line 1.*iconv -f WINDOWS-1252"),
        ("a.txt", "Die Mühle".encode("utf-16"), r"UTF-16LE.*iconv -f UTF-16LE -t UTF-8 a\.txt"),
        ("a.txt", b"%PDF-1.4\n", r"a PDF by its content; rename it to a\.pdf"),
        ("a.pdf", b"Just text.", r"no PDF \(it begins with b'Just tex'\)"),
        ("a.docx", b"PK", r"\.docx is not read; expected \.md, \.txt or \.pdf"),
        ("README", b"text", r"a file without an ending is not read"),
    ],
)
def test_what_is_no_document_is_named(tmp_path, name, content, said):
    with pytest.raises(ValueError, match=said):
        read_document(write(tmp_path, name, content))


@pytest.mark.parametrize(("name", "most"), [("a.txt", "4 MiB of .txt"), ("a.pdf", "64 MiB of .pdf")])
def test_a_file_of_100_mb_is_refused_before_it_is_read(tmp_path, name, most):
    file = tmp_path / name
    with file.open("wb") as out:
        out.truncate(100 * 10**6)  # takes no room on the disk
    with pytest.raises(ValueError, match=rf"95\.4 MiB; at most {most}"):
        read_document(file)


def test_a_file_that_is_not_there_and_a_folder_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.md: no such file; expected a document"):
        read_document(tmp_path / "none.md")
    with pytest.raises(ValueError, match=r"not a file; expected one document"):
        read_document(tmp_path)


def test_damaged_and_empty_pdfs_are_named(tmp_path):
    pytest.importorskip("pypdf")
    whole = pdf("Text.")
    with pytest.raises(ValueError, match=r"not a readable PDF \(.*save it again"):
        read_document(write(tmp_path, "cut.pdf", whole[: len(whole) // 3]))
    with pytest.raises(ValueError, match=r"2 pages without any text: .*OCR"):
        read_document(write(tmp_path, "scan.pdf", pdf("", "")))


def test_a_locked_pdf_is_named(tmp_path):
    pypdf = pytest.importorskip("pypdf")
    writer = pypdf.PdfWriter(clone_from=write(tmp_path, "open.pdf", pdf("Text.")))
    writer.encrypt("secret", algorithm="RC4-128")
    writer.write(tmp_path / "locked.pdf")
    with pytest.raises(ValueError, match=r"locked with a password; save a copy without one"):
        read_document(tmp_path / "locked.pdf")


def test_without_pypdf_a_pdf_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pypdf", None)
    with pytest.raises(ValueError, match=r"needs pypdf.*pip install 'seal_jax\[pdf\]'"):
        read_document(write(tmp_path, "a.pdf", pdf("Text.")))


# ---------------------------------------------------------------------------------------------------------------------
# Passages


def test_short_paragraphs_of_a_section_are_joined_and_sections_are_not(tmp_path):
    document = read_document(write(tmp_path, "notes.md", ISLE))
    found = passages(document, count=words, budget=40)
    assert [passage.title for passage in found] == [section.title for section in document.sections]
    assert found[1].context.count("\n") == 2
    assert all(passage.questions == () for passage in found)
    assert len({passage.id for passage in found}) == 4
    assert found[1].id.startswith("hollin-skerry-the-lamp-")


def test_a_long_paragraph_is_cut_at_sentences_into_parts_of_about_one_length():
    text = " ".join(f'He said "number {n}." and left.' for n in range(12))
    found = passages(parse(text, name="a", markdown=False), count=words, budget=40)
    assert [words(passage.context) for passage in found] == [36, 36]
    assert all(passage.context.endswith("left.") for passage in found)


def test_sentences_keep_their_closing_marks():
    assert sentences('He said "no." Then (he left.) Fin') == ['He said "no."', "Then (he left.)", "Fin"]


def test_a_word_that_no_passage_can_hold_is_refused():
    with pytest.raises(ValueError, match=r"a passage of 2 tokens cannot hold 'x' \(3\)"):
        passages(parse("xyz", name="a", markdown=False), count=lambda text: 3, budget=2)


def test_what_is_said_twice_is_taught_once():
    twice = Document("a", (Section("a", ("The same.",)), Section("a", ("The same.",)), Section("b", ("The same.",))))
    assert [passage.title for passage in passages(twice, count=words, budget=9)] == ["a", "b"]


@given(
    st.lists(st.lists(st.sampled_from(["", ".", ",", '!"', "?)"]), min_size=1, max_size=40), min_size=1, max_size=6),
    st.integers(1, 30),
)
def test_no_word_is_lost_or_moved_and_no_passage_is_over_the_budget(marks, budget):
    paragraphs = [[f"W{p}n{n}{mark}" for n, mark in enumerate(row)] for p, row in enumerate(marks)]
    text = "\n\n".join(" ".join(row) for row in paragraphs)
    found = passages(parse(text, name="a", markdown=False), count=words, budget=budget)
    assert all(words(passage.context) <= budget for passage in found)
    assert " ".join(passage.context for passage in found).split() == text.split()


@pytest.mark.parametrize(
    ("own", "title"),
    [
        ("The moth", "The moth"),
        ("moth.html", ""),
        ("Microsoft Word - moth.doc", ""),
        ("Microsoft Word - The moth", "The moth"),
        ("file:///tmp/moth", ""),
        ("Untitled-1", ""),
        ("Version 2.0", "Version 2.0"),
        (" - ", ""),
    ],
)
def test_a_pdfs_title_is_no_files_name(own, title):
    assert document_module._own_title(own) == title
