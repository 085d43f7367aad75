"""Failed jobs and dead letters: how they are selected, listed and swept."""

from .dead_letters import DeadLetterRegistry
from .policies import Bury, Ghosts, Purge, Requeue
from .selection import Selection
from .sweeper import Sweeper

__all__ = ["Bury", "DeadLetterRegistry", "Ghosts", "Purge", "Requeue", "Selection", "Sweeper"]
