"""What `mkdocs build` makes of the program: pages of its commands, its config keys and its files.

- `<!-- commands -->` and `<!-- keys -->` in a page are replaced by what the program says of itself.
- A file outside of docs/ that a page links becomes a page of its own, below files/; of a notebook,
  with what its cells showed.
- An equation in LaTeX, \\( ... \\) or $$ ... $$, becomes MathML, which browsers draw by themselves.
"""

import json
import posixpath
import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import latex2mathml.converter
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(\]\()(?!https?:|mailto:|data:|#)([^)#\s]+)(#[^)\s]*)?(\))")
LANGUAGES = {".toml": "toml", ".py": "python", ".service": "ini", ".cff": "yaml"}


# ---- hooks, by the names that mkdocs knows


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """A page for each file outside of docs/ that is linked, and for those that these link."""
    waiting = [ROOT / "docs" / file.src_uri for file in files.documentation_pages()]
    seen: set[Path] = set()
    while waiting:
        for _, target in outside(waiting.pop()):
            if target not in seen:
                seen.add(target)
                files.append(File.generated(config, uri(target), content=written(target)))
                waiting += [target] if target.suffix == ".md" else []
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page with what the program says, and with links to the pages of files."""
    for mark, made in (("<!-- commands -->", commands), ("<!-- keys -->", keys)):
        if mark in markdown:
            markdown = markdown.replace(mark, "\n".join(made()))
    return LINK.sub(lambda match: relinked(match, page.file.src_uri), markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page with its equations."""
    return re.sub(r'<(span|div) class="arithmatex">(.*?)</\1>', mathml, html, flags=re.DOTALL)


# ---- files outside of docs/


def origin(src_uri: str) -> Path:
    """The file of the checkout that a page is made of."""
    if src_uri.startswith("files/"):
        return ROOT / src_uri.removeprefix("files/")
    return ROOT / "docs" / src_uri


def outside(page: Path) -> Iterator[tuple[str, Path]]:
    """Links of a page that lead out of docs/, with the file or folder that each means."""
    for link in LINK.finditer(page.read_text(encoding="utf-8")):
        target = (page.parent / link[2]).resolve()
        if not target.is_relative_to(ROOT / "docs") and target.exists():
            yield link[2], target


def uri(target: Path) -> str:
    """Where the page of a file lies."""
    inner = target.relative_to(ROOT).as_posix()
    if inner.endswith(".md"):
        return f"files/{inner}"
    return f"files/{inner}.md"


def written(target: Path) -> str:
    """A file as a page; of a folder, the names of what is in it."""
    name = target.relative_to(ROOT).as_posix()
    if target.suffix == ".md":
        return target.read_text(encoding="utf-8")
    if target.is_dir():
        return f"# {name}\n\n" + "\n".join(f"- `{each.name}`" for each in sorted(target.iterdir()))
    if target.suffix == ".ipynb":
        return "\n\n".join(notebook(json.loads(target.read_text(encoding="utf-8"))))
    language = LANGUAGES.get(target.suffix, "text")
    return f"# {name}\n\n````{language}\n{target.read_text(encoding='utf-8')}````\n"


def notebook(book: dict[str, Any]) -> Iterator[str]:
    """Cells of a notebook, each with what it showed."""
    for cell in book["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            yield source
        else:
            yield f"```python\n{source}\n```"
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            text = "".join(output.get("text", data.get("text/plain", "")))
            if "image/png" in data:
                picture = data["image/png"].strip()
                yield f"![what the lines above draw](data:image/png;base64,{picture})"
            elif "text/html" in data:
                lines = "".join(data["text/html"]).splitlines()
                yield f"<div>{' '.join(line.strip() for line in lines)}</div>"
            else:
                yield f"```text\n{text}\n```"


def relinked(match: re.Match[str], src_uri: str) -> str:
    """A link that leads to a page of the site, whatever it led to in the checkout."""
    target = (origin(src_uri).parent / match[2]).resolve()
    if not target.exists():
        return match[0]  # mkdocs says so
    wanted = uri(target)
    if target.is_relative_to(ROOT / "docs"):
        wanted = target.relative_to(ROOT / "docs").as_posix()
        if target.suffix not in (".md", ".svg", ".png"):  # a unit, a Dockerfile
            return match[0]
    link = posixpath.relpath(wanted, posixpath.dirname(src_uri) or ".")
    return f"{match[1]}{link}{match[3] or ''}{match[4]}"


# ---- what the program says


def commands() -> Iterator[str]:
    """Each command with its arguments and options, from its help."""
    import typer
    from typer.core import TyperGroup

    from fedexperts.cli import app

    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            for inner, each in command.commands.items():
                yield from told(f"{name} {inner}", each)
        else:
            yield from told(name, command)


def told(name: str, command: Any) -> Iterator[str]:
    """A command as a section: its line, what it does, a row for each argument and option."""
    import click

    context = click.Context(command, info_name=f"fedexperts {name}")
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"## {name}\n\n{command.help}\n\n```text\nfedexperts {name} {usage}\n```\n"
    rows = [
        (", ".join(option.opts), option.get_help_record(context))
        for option in command.get_params(context)
        if option.name != "help"
    ]
    if rows:
        yield "| | |\n|---|---|"
        for names, record in rows:
            shown, says = record or (names, "")
            yield f"| `{cell(shown)}` | {cell(says)} |"
    yield ""


def keys() -> Iterator[str]:
    """Each section of a config, each of its kinds, and each key: what it means, its default."""
    from dataclasses import MISSING, fields

    from fedexperts.config.names import NAMED, PLAIN

    for section in PLAIN:
        yield f"## [{section}]\n\n{first(PLAIN[section])}\n"
        yield from rows(PLAIN[section], fields, MISSING)
    for section, named in NAMED.items():
        if section == "gate":
            continue
        yield f"## [{section}]\n\nOne of these, by `name`.\n"
        for name in named:
            yield f"### {section}.name = {name}\n\n{first(named[name])}\n"
            yield from rows(named[name], fields, MISSING)


def first(settings: type) -> str:
    """What a class says of itself, in one paragraph."""
    return " ".join((settings.__doc__ or "").split("\n\n")[0].split())


def rows(settings: type, fields: Any, missing: Any) -> Iterator[str]:
    """A table of a section's keys."""
    options = [field for field in fields(settings) if "says" in field.metadata]
    if options:
        yield "| key | default | meaning |\n|---|---|---|"
    for field in options:
        default = "required"
        if field.default is not missing:
            default = f"`{cell(repr(field.default))}`"
        elif field.default_factory is not missing:
            default = f"`{cell(repr(field.default_factory()))}`"
        yield f"| `{field.name}` | {default} | {cell(field.metadata['says'])} |"
    yield ""


def cell(text: str) -> str:
    """A text that a table's cell can hold."""
    return " ".join(text.split()).replace("|", "\\|").replace("[", "\\[")


# ---- equations


def mathml(match: re.Match[str]) -> str:
    """An equation as browsers draw it."""
    latex = unescape(match[2]).strip()
    display = "block" if match[1] == "div" else "inline"
    inner = re.sub(r"^\\[\[(]|\\[\])]$", "", latex).strip()
    return latex2mathml.converter.convert(inner, display=display)
