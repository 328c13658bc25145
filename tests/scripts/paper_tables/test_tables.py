"""Tables as Markdown, LaTeX and HTML: every value is there, and no text breaks the syntax."""

from dataclasses import replace
from html.parser import HTMLParser

from scripts.paper_tables.tables import Table, html_page, latex, markdown, without_repeats

TABLE = Table(
    "performance",
    "Merges & more",
    ["models", "method", "GSM8K"],
    2,
    [
        (("LM & Math",), ("TIES_2",), ("14.6 [13.0, 16.3]", "sd 1.0, best 15.0")),
        (("LM & Math",), ("average",), ("– [1]",)),
        (("LM & Code",), ("average",), ("<none>",)),
    ],
    ["missing: 50% of a|b, {here} ^ and $there"],
    ["Per cent."],
)


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in ("br", "meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_markdown_rows_have_the_same_number_of_cells():
    lines = [line for line in markdown([TABLE]).splitlines() if line.startswith("|")]
    assert len(lines) == 5
    assert {line.replace("\\|", "").count("|") for line in lines} == {4}


def test_latex_does_not_read_a_note_as_a_length():
    table = replace(TABLE, rows=[(("LM & Math",), ("average",), ("45.0 [30.0, 60.0]", "[1]"))])
    assert "45.0 [30.0, 60.0]\\\\ {}[1]" in latex(table)


def test_every_value_is_in_each_form():
    for text in (markdown([TABLE]), latex(TABLE), html_page("Tables", [TABLE], {})):
        for value in ("14.6 [13.0, 16.3]", "sd 1.0, best 15.0", "GSM8K", "Per cent."):
            assert value in text


def test_html_is_well_formed_and_escaped():
    page = html_page("Tables", [TABLE], {"../figures/a.svg": 'Bars of "a" & <b>'})
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert "&lt;none&gt;" in page and "LM &amp; Math" in page
    assert 'src="../figures/a.svg" alt="Bars of &#34;a&#34; &amp; &lt;b&gt;"' in page


def test_latex_escapes_commands():
    text = latex(TABLE)
    assert r"LM \& Math" in text and r"TIES\_2" in text and r"50\% of a$|$b" in text and r"\$there" in text
    rows = [line for line in text.splitlines() if line.endswith(r" \\")]
    assert len(rows) == 4 and all(row.replace(r"\&", "").count("&") == 2 for row in rows)
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")


def test_a_label_is_not_repeated():
    assert [row[0] for row in without_repeats(TABLE)] == [("LM & Math",), ("",), ("LM & Code",)]
