"""The version of the installed package. Imported at first use, since ``importlib.metadata`` takes some time."""

from importlib import metadata

try:
    __version__ = metadata.version("llm-callback")
except metadata.PackageNotFoundError as _error:
    raise AttributeError(
        "llm_callback has no __version__ here: it is imported from files that pip has not installed"
    ) from _error
