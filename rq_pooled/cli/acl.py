"""``rq-pooled acl``: prints the rules by which a server lets each role of an application do its work, and no more."""

from __future__ import annotations

import re
import secrets

import click

from ..errors import ConfigurationError
from ..store.access import ROLES, rules
from .printing import say, say_json


@click.command(short_help="Print access rules (ACL) for worker, web and page.")
@click.argument("roles", nargs=-1, type=click.Choice(list(ROLES)))
@click.option("--prefix", metavar="TEXT", help="The prefix of the application's keys; else that of the environment.")
@click.option("--name", default="", metavar="TEXT", help="What the names of the users begin with, such as shop- .")
@click.option("--passwords", is_flag=True, help="Give each a random password, which is printed, too.")
@click.option("--setuser", is_flag=True, help="Print commands for redis-cli instead of lines for users.acl.")
@click.option("--json", "as_json", is_flag=True, help="Print data as JSON.")
def acl(roles: tuple[str, ...], prefix: str | None, name: str, passwords: bool, setuser: bool, as_json: bool) -> None:
    """Print the access rules (ACL) of each ROLE, or of all, a line each. It asks no server.

    \b
      rq-pooled acl --passwords >> /etc/redis/users.acl        the server reads it at its start, and at ACL LOAD
      rq-pooled acl --passwords --setuser | tee users.txt | redis-cli
      rq-pooled acl web --setuser | redis-cli                  new rules; the passwords stay

    A user without a password cannot log in. Each call with --passwords makes new ones. Where the file has no line for
    the user default, that user stays open to all. The rules need Redis 7.0 or Valkey.
    """
    for option, text in (("--prefix", "none" if prefix is None else prefix), ("--name", name or "none")):
        if not re.fullmatch(r"[^\s\x00-\x1f]+", text):
            raise ConfigurationError(f"{option} is {text or 'empty'}: write it without white space")
    found = {}
    for role in roles or ROLES:
        words = ["on", *([f">{secrets.token_urlsafe(24)}"] if passwords else []), *rules(ROLES[role], prefix)]
        if as_json:
            found[role] = {"user": name + role, "rules": words}
        else:
            say(" ".join(["ACL SETUSER" if setuser else "user", name + role, *words]))
    if as_json:
        say_json(found)
