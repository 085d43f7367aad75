"""Processes: an event loop, forked children and messages to them. Knows neither Redis nor RQ."""
