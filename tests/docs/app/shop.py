"""A Flask application as a factory."""

from __future__ import annotations

from flask import Flask


def create_app() -> Flask:
    """Make the application."""
    return Flask("shop")
