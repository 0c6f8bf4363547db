"""The version, in the one place where it is written; the packaging metadata reads it from here."""

__version__ = "1.0.0.dev0"
