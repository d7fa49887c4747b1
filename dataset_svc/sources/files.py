"""Bytes of a file as lines or blocks of text: plain or gzip, UTF-8 only, never whole in memory.

Knows nothing of JSON. Every way in which a file can be unreadable ends here in one clear `InvalidArgument`.
"""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO

from chatmill.errors import InvalidArgument, NotFound, PermissionDenied
from dataset_svc.sources.record import MAX_RECORD_BYTES, Place, bad_source

_GZIP = b"\x1f\x8b"
_FOREIGN = {
    b"PK\x03\x04": ("a zip archive or an Office file", "Unpack it, or save the sheet as JSONL"),
    b"PAR1": ("a Parquet file", "Convert it to JSONL"),
    b"SQLite": ("a SQLite database", "Export the conversations as JSONL"),
    b"%PDF": ("a PDF", "Export the conversations as JSONL"),
    b"\xff\xfe": ("UTF-16 text", "Save it as UTF-8 (iconv -f utf-16 -t utf-8)"),
    b"\xfe\xff": ("UTF-16 text", "Save it as UTF-8 (iconv -f utf-16 -t utf-8)"),
    b"BZh": ("a bzip2 archive", "Unpack it, or compress it with gzip"),
    b"\xfd7zXZ": ("an xz archive", "Unpack it, or compress it with gzip"),
    b"(\xb5/\xfd": ("a zstd archive", "Unpack it, or compress it with gzip"),
}
_BLOCK = 1 << 18


class SourceFile:
    """An open conversation file; a context manager.

    Args:
        path: the file; its permission has been checked by the caller.
        shown: name to use in messages.

    Raises:
        NotFound: there is no such file. PermissionDenied: the service may not read it.
        InvalidArgument: it is a folder, empty, or in a form that is not text.
    """

    def __init__(self, path: Path, shown: str) -> None:
        self.shown = shown
        try:
            if path.exists() and not path.is_file() and not path.is_dir():
                raise bad_source(shown, "is not a regular file", "Write it to a file first", kind="NOT_A_FILE")
            self._raw: IO[bytes] = path.open("rb")
        except FileNotFoundError:
            raise NotFound(
                f"{shown}: no such file. Check the path; a relative path is resolved where the dataset service runs.",
                reason="NOT_FOUND",
            ) from None
        except IsADirectoryError:
            raise bad_source(shown, "is a folder", "Name the files in it", kind="IS_FOLDER") from None
        except PermissionError:
            raise PermissionDenied(
                f"{shown}: the dataset service may not read this file. Give its user read permission.",
                reason="PATH_NOT_ALLOWED",
            ) from None
        try:
            self.bytes_total = path.stat().st_size
            self._stream = self._open()
        except BaseException:
            self._raw.close()
            raise

    def __enter__(self) -> SourceFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._raw.close()

    @property
    def bytes_read(self) -> int:
        """Bytes of the file (compressed, if it is) that have been read, for progress."""
        return self._raw.tell()

    def rewind(self) -> None:
        """Back to the beginning, so that what was looked at is read again."""
        self._raw.seek(0)
        self._stream = self._open()

    def lines(self) -> Iterator[tuple[int, str, bool]]:
        """Line number from 1, text without its line break, and whether the break was there (it isn't on a cut-off end).

        Raises:
            InvalidArgument: the line is too long or not UTF-8, or the compressed data are cut off or damaged.
        """
        number = 0
        while True:
            number += 1
            line = self._read(lambda: self._stream.readline(MAX_RECORD_BYTES + 1), number)
            if not line:
                return
            if len(line) > MAX_RECORD_BYTES:
                raise bad_source(
                    Place(self.shown, number),
                    f"the line is longer than {MAX_RECORD_BYTES:,} bytes",
                    "Put one conversation on each line",
                    kind="RECORD_TOO_LONG",
                )
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                raise self._not_utf8(error, line, number) from None
            yield number, text.removeprefix("\ufeff").rstrip("\r\n"), text.endswith("\n")

    def blocks(self) -> Iterator[str]:
        """The text in blocks of about a quarter of a million characters.

        Raises:
            InvalidArgument: the text is not UTF-8, or the compressed data are cut off or damaged.
        """
        decoder = codecs.getincrementaldecoder("utf-8-sig")()
        line = 1
        while True:
            block = self._read(lambda: self._stream.read(_BLOCK), line)
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                line += error.object[: error.start].count(b"\n")
                raise self._not_utf8(error, error.object, line) from None
            line += text.count("\n")
            if text:
                yield text
            if not block:
                return

    def _open(self) -> IO[bytes] | gzip.GzipFile:
        head = self._raw.read(8)
        self._raw.seek(0)
        if not head:
            raise bad_source(self.shown, "is empty", "Export the conversations again", kind="EMPTY")
        for magic, (what, remedy) in _FOREIGN.items():
            if head.startswith(magic):
                raise bad_source(self.shown, f"is {what}, not JSON or JSONL", remedy, kind="NOT_JSON")
        if head.startswith(_GZIP):
            return gzip.GzipFile(fileobj=self._raw, mode="rb")
        return self._raw

    def _read(self, read: Callable[[], bytes], line: int) -> bytes:
        try:
            return read()
        except EOFError:
            raise bad_source(
                Place(self.shown, line),
                "the compressed file is cut off here",
                "Copy it again, and compare sizes or checksums",
                kind="TRUNCATED",
            ) from None
        except (gzip.BadGzipFile, zlib.error):
            raise bad_source(
                Place(self.shown, line),
                "the compressed data are damaged",
                "Copy or compress the file again",
                kind="DAMAGED",
            ) from None

    def _not_utf8(self, error: UnicodeDecodeError, line: bytes, number: int) -> InvalidArgument:
        remedy = "Save the file as UTF-8"
        if b"\x00" in line:
            return bad_source(Place(self.shown, number), "is binary data, not text", remedy, kind="NOT_JSON")
        try:
            line.decode("gb18030")
            remedy += " (if it is Chinese text from a spreadsheet: iconv -f gb18030 -t utf-8)"
        except UnicodeDecodeError:
            remedy += " (if it is Western text: iconv -f windows-1252 -t utf-8)"
        problem = f"byte 0x{error.object[error.start]:02x} is not UTF-8"
        return bad_source(Place(self.shown, number), problem, remedy, kind="NOT_UTF8")
