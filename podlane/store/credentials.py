"""The certificates a client of etcd shows and trusts, from files that a renewal replaces.

Owns: reading them, and noticing that they are others now. gRPC takes them over when a
channel is made and keeps them as long as it lives, so whoever made channels asks
`renewed` after a connection has failed; connections that work go on with what they
began with, which etcd does not look at again.
"""

from __future__ import annotations

from pathlib import Path

import grpc

from podlane.errors import FieldError, Invalid
from podlane.runtime import expiry
from podlane.runtime.fileversions import FileVersions
from podlane.runtime.log import get_logger
from podlane.store.config import StoreConfig

_FILES = ("cafile", "keyfile", "certfile")


class Credentials:
    """`current` is for the next channel. Raises Invalid when a file cannot be read."""

    def __init__(self, config: StoreConfig) -> None:
        self._config = config
        self._versions = FileVersions(path for field in _FILES if (path := getattr(config, field)))
        self.current = self._read()

    def renewed(self) -> bool:
        """Read the files again if they have been replaced; whether `current` is new."""
        if not self._versions.changed():
            return False
        try:
            self.current = self._read()
        except Invalid as error:  # when it is there again, that is a change
            get_logger("store").warning("certificates not read, the ones before go on", error=str(error))
            return False
        get_logger("store").info("certificates read anew", certfile=self._config.certfile)
        return True

    def _read(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(*(self._content(field) for field in _FILES))

    def _content(self, field: str) -> bytes | None:
        path = getattr(self._config, field)
        if not path:
            return None
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise Invalid("etcd", [FieldError(field, f"read {path}: {error.strerror}")]) from error
        expiry.loaded(path, content)
        return content
