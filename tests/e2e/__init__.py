"""A package, for pytest: only in one has a fixture of scope "package" its end with the last test here."""
