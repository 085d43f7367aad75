"""How full the server is, who holds its connections, and what is reserved."""
