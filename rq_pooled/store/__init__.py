"""What is written to Redis: every Lua script beside its typed function, the keys, and what replies mean."""
