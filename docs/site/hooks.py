"""What MkDocs does to pages: commands come from click, and files outside of docs/ get their address."""

from __future__ import annotations

import posixpath
import re
from typing import Any

import click

from rq_pooled.cli.main import cli

COMMANDS = "<!-- commands: "
OUTSIDE = re.compile(r"\]\((\.\./[^)#\s]+)")


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Return a page's text as the site shows it."""
    if COMMANDS in markdown:
        markdown = markdown[: markdown.index(COMMANDS)] + "\n".join(help_of(name) for name in sorted(cli.commands))
    return OUTSIDE.sub(lambda match: f"]({address(match[1], page.file.src_uri, config['repo_url'])}", markdown)


def help_of(name: str) -> str:
    """Return a section with the help of a command."""
    with click.Context(cli, info_name="rq-pooled") as parent:
        context = click.Context(cli.commands[name], info_name=name, parent=parent, max_content_width=100)
        return f"## `rq-pooled {name}`\n\n```text\n{context.get_help()}\n```\n"


def address(link: str, page: str, repository: str) -> str:
    """Return where the repository shows a file or folder outside of docs/."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link))
    kind = "blob" if "." in posixpath.basename(path) else "tree"
    return f"{repository}/{kind}/main/{path}"
