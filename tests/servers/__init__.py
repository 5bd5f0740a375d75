"""Real servers for tests, from wheels: each in a module of its own, usable without pytest as `with` blocks."""
