"""The controller: runs on your machine, never on a fleet's hosts (those run `payload/`)."""

__version__ = "0.1.0"
