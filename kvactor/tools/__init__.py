"""Tools that try a running server from outside."""
