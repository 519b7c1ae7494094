"""Why an image was not labelled: the fixed list of reasons, and the error that carries one."""

from ...errors import DataError

CODES = {
    "missing": "the file is not there any more",
    "changed": "size or time of change differ from when the list was frozen",
    "not-a-file": "a folder, pipe, socket or device that has an image's name",
    "bad-name": "the system cannot open a file of this name",
    "unreadable": "no permission, a disk error, or a server that does not answer as it should",
    "empty": "0 bytes",
    "not-an-image": "no format that can be read: JPEG, PNG, WebP, TIFF, BMP, GIF or PPM",
    "truncated": "cut short or damaged",
    "too-large": "more pixels or bytes than allowed",
    "unsupported-depth": "other than 8 or 16 bits a channel, or more than 4 channels",
    "out-of-memory": "decoding or labelling it needs more memory than there is",
    "worker-died": "a process ended when it worked on this image alone",
    "timeout": "it took longer than an image may take",
    "model-failed": "the model refused it, or gave NaN",
}
"""Code of each reason, as records and `failures.csv` have it, and what it means."""


class BadFile(DataError):
    """A file that cannot be used.

    Attributes:
        code: a key of `CODES`.
    """

    def __init__(self, code: str, message: str) -> None:
        if code not in CODES:
            raise ValueError(f"unknown code {code!r}")
        super().__init__(code, message)  # both, so that it travels between processes
        self.code = code

    def __str__(self) -> str:
        return str(self.args[1])


class BadImage(BadFile):
    """An image that is set aside; the others of its job go on."""
