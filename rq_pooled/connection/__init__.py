"""How a connection is opened, and what its errors mean."""
