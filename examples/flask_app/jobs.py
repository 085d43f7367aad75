"""The shop's jobs. They run in the application's context, as requests do."""

from __future__ import annotations

import random
import time
from typing import Any

from flask import current_app

from rq_pooled import Backoff


class MailServerBusy(ConnectionError):
    """The mail server says: come back later."""


def confirm(number: int) -> str:
    """Send the confirmation of an order; takes 5 to 50 ms."""
    time.sleep(random.uniform(0.005, 0.05))
    return f"{current_app.config['SHOP_NAME']} has confirmed order {number}"


def charge(number: int) -> None:
    """Charge a card that has expired."""
    raise ValueError(f"the card of order {number} has expired")


def ship(number: int) -> None:
    """Ask a mail server that is mostly busy."""
    if random.random() < 0.7:
        raise MailServerBusy(f"421 try again later (order {number})")


def order_for(queue: Any, number: int) -> Any:
    """Return what ``enqueue_many`` takes for an order: most go well, some fail, some are retried."""
    if number % 50 == 0:
        return queue.prepare_data(charge, (number,))
    if number % 20 == 0:
        return queue.prepare_data(ship, (number,), retry=Backoff(max=4, base=2))
    return queue.prepare_data(confirm, (number,))
