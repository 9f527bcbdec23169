# SPDX-License-Identifier: Apache-2.0
"""Records, segments, and what the end of a log means."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_RECORD = ("tests/journal/test_record.py",)
_RECOVERY = ("tests/journal/test_recovery.py", "tests/journal/test_reopen.py")
_LOG = ("tests/journal/test_appender.py", "tests/journal/test_log.py")
_SEAL = ("tests/journal/test_seal.py",)
_DURABLE = ("tests/journal/test_durable_log.py",)

MUTANTS = (
    Mutant(
        "a header is checked against its predecessor",
        "journal/record.py",
        "if xxh3_64_intdigest(view[at : at + CHAINED_BYTES], chain) != link:",
        "if xxh3_64_intdigest(view[at : at + CHAINED_BYTES], chain) != link and not records:",
        _RECORD,
    ),
    Mutant(
        "a payload is checked by its sum",
        "journal/record.py",
        "        if xxh3_64_intdigest(payload) != total:",
        "        if kind != _WRITE and xxh3_64_intdigest(payload) != total:",
        _RECORD,
    ),
    Mutant(
        "a chain names its stream",
        "journal/record.py",
        'return xxh3_64_intdigest(stream.bytes + ordinal.to_bytes(8, "little"))',
        "return xxh3_64_intdigest(stream.bytes)",
        ("tests/journal/test_golden.py", *_RECORD, "tests/journal/test_stream_files.py"),
    ),
    Mutant(
        "what is bad below the durable mark is damage",
        "journal/recovery.py",
        "return not (_whole(s) or s.sealed or s.below_statement or s.witness is Witness.BROKEN)",
        "return not (_whole(s) or s.sealed or s.witness is Witness.BROKEN)",
        _RECOVERY,
    ),
    Mutant(
        "a log that ends before what was acknowledged is a gap",
        "journal/recovery.py",
        "    elif facts.end_lsn < facts.acknowledged:",
        "    elif facts.end_lsn < 0:",
        _RECOVERY,
    ),
    Mutant(
        "a file is synced before its end is reported",
        "journal/reopen.py",
        """        try:
            file.datasync()
        finally:""",
        """        try:
            pass
        finally:""",
        _RECOVERY,
    ),
    Mutant(
        "statements behind a fault count",
        "journal/reopen.py",
        "            self.known_durable = behind.known_durable\n",
        "            pass\n",
        _RECOVERY,
    ),
    Mutant(
        "a stale statement does not count",
        "journal/survey.py",
        "            if known_durable <= stated <= lsn:",
        "            if known_durable <= stated:",
        _RECORD,
    ),
    Mutant(
        "a short append is taken back",
        "journal/appender.py",
        "            self._take_back(file, at)\n",
        "            pass\n",
        _LOG,
    ),
    Mutant(
        "a failed sync condemns the log",
        "journal/appender.py",
        """        except OSError:
            self.broken = True
            raise
        self._new_directories.clear()""",
        """        except OSError:
            raise
        self._new_directories.clear()""",
        _LOG,
    ),
    Mutant(
        "a new segment's directory is synced",
        "journal/appender.py",
        "                self._storage.sync_directory(directory)",
        "                pass",
        _LOG,
    ),
    Mutant(
        "a seal links to the one before",
        "journal/seal.py",
        "        if previous_digest is not None and seal.previous_digest != previous_digest:",
        "        if previous_digest is None and seal.previous_digest != previous_digest:",
        _SEAL,
    ),
    Mutant(
        "a seal's digest is compared",
        "journal/seal.py",
        "        if seal.digest != digest.digest():",
        "        if not digest.digest():",
        _SEAL,
    ),
    Mutant(
        "a log that was cut back goes on with its own chain",
        "journal/durable_log.py",
        "        self.durable_end, self.durable_chain = writer.end_lsn, writer.chain\n",
        "        self.durable_end = writer.end_lsn\n",
        (*_DURABLE, "tests/receiver/test_apply.py"),
    ),
    Mutant(
        "a failed sync is never tried again on the same bytes",
        "journal/durable_log.py",
        "        except OSError:\n            self._lose()\n            raise\n",
        "        except OSError:\n            raise\n",
        _DURABLE,
    ),
    Mutant(
        "what is cut off is cut off durably",
        "journal/durable_log.py",
        "                try:\n                    writer.sync()\n",
        "                try:\n                    pass\n",
        _DURABLE,
    ),
    Mutant(
        "a segment that holds nothing durable is taken away before it counts as cut",
        "journal/durable_log.py",
        "                    self._storage.unlink(path)\n                self._storage.sync",
        "                    pass\n                self._storage.sync",
        _DURABLE,
    ),
    Mutant(
        "that it was taken away is made durable, if that failed at first as well",
        "journal/durable_log.py",
        "                    self._storage.unlink(path)\n                self._storage.sync",
        "                    self._storage.unlink(path)\n                    self._storage.sync",
        _DURABLE,
    ),
    Mutant(
        "what cannot be cut off yet is cut off before the next append",
        "journal/durable_log.py",
        "            self._doubtful = None if path is None else (path, writer.segment_first)\n",
        "",
        _DURABLE,
    ),
)
