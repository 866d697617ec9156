"""How one connection is made."""
