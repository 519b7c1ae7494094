"""Errors that a user can mend.

Each message is one line: what was found, what was expected, what would work. Anything else that
is raised is our bug and keeps its traceback.
"""


class WsssError(Exception):
    """Base of every error that the user's input or environment causes.

    The message is one line: what was found, what was expected, what would work. The subclasses are
    in `wsss.errors`: `ConfigError` (arguments and recipes), `DataError` (images, masks, labels),
    `ShapeError` (arrays), `ArtifactError` (runs, bundles and other files), `ServerError` with
    `DeadlineError`, and `MissingDependencyError`.
    """


class ConfigError(WsssError):
    """A recipe, an option or a combination of options is wrong."""


class DataError(WsssError):
    """An image set, an image, a mask or a label file cannot be used as it is."""


class ShapeError(WsssError):
    """An array or a grid has a shape that the operation does not take."""


class ArtifactError(WsssError):
    """A run, a checkpoint or another file written by a program cannot be used."""


class MissingDependencyError(WsssError):
    """An optional package is absent; the message holds the line that installs it."""


class ServerError(WsssError):
    """A server cannot be reached, has no room for more work, or stopped in the middle of it."""


class DeadlineError(ServerError):
    """A server took longer over one request than it was given."""
