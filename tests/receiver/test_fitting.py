# SPDX-License-Identifier: Apache-2.0
"""What lies beside what: every cell of the matrix, on a whole group.

Rows are the parts, columns older, missing, newer than the rest. No cell serves a false point, and
none stops what a crash may leave.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from journal.segment import HEADER_BYTES, pack_header, parse_header
from receiver.fitting.applied import SLOT_BYTES, pack, unpack
from receiver.history.writer import history_name
from replicator.base.errors import DamageError, UsageError
from tests.receiver.side_by_side import Group
from tests.receiver.source import noise
from tests.receiver.world import GROUP_DIRECTORY
from tests.world.storage import Stopped

APPLIED = GROUP_DIRECTORY / "disks" / "applied"


def test_a_group_that_nothing_happened_to_opens_in_silence() -> None:
    group = Group()
    group.open()
    assert group.told() == set()
    assert group.served() == list(range(1, 13))


# -- the replica


@pytest.mark.parametrize("in_place", [False, True], ids=["copy", "snapshot"])
def test_replica_older(in_place: bool) -> None:
    """Points that it holds are served. What was written behind it is damage, or healed."""
    group = Group()
    group.stop()
    group.put_back("disks", group.then["disks"], in_place=in_place)
    group.open()
    assert "replica.older" in group.told()
    assert ("replica.unverified" in group.told()) is (not in_place)
    group.world.apply_all()
    if not in_place:
        assert group.served() == [], "nobody has read those files back"
        group.scrub()
    served = group.served()
    assert served[:6] == [1, 2, 3, 4, 5, 6]
    group.check()


def test_replica_older_is_on_record_before_it_is_vouched_for() -> None:
    """A crash before every call of what follows: never a false point."""
    for at in range(1, 1000):
        group = Group()
        group.stop()
        group.put_back("disks", group.then["disks"], in_place=True)
        try:
            group.open()
            group.world.storage.stop_at(at)
            group.world.apply_all()
            group.go_on()
        except BaseException as error:
            if type(error).__name__ != "Stopped":
                raise
        else:
            group.world.storage.heal()
            return
        group.open()
        group.world.apply_all()
        group.served()
    raise AssertionError("it never came to an end")


def test_batches_that_wait_do_not_vouch_for_what_an_opening_found() -> None:
    """The first of them puts it on record; a power cut before that is durable finds it again."""
    for at in range(1, 200):
        group = Group(points=9, old=5, left=2)
        group.stop()
        group.put_back("disks", group.then["disks"], in_place=True)
        group.remove("fine")  # nothing to heal it from
        group.open()
        assert group.world.group.known.damage
        group.world.storage.stop_at(at)
        try:
            group.world.apply_all()
        except Stopped:
            group.world.storage.power_cut(Random(at))
            group.open()
            group.world.apply_all()
            group.served()
        else:
            group.world.storage.heal()
            return
    raise AssertionError("it never came to an end")


def test_what_a_begun_batch_has_put_on_record_stays_there() -> None:
    """It overwrites a block that is older than the history says; a crash comes before it is
    applied, and the next opening finds another such block."""
    for at in range(1, 1000):
        group = Group(points=2, old=2, inbox_segment_bytes=100, history_segment_bytes=1 << 20)
        world = group.world
        for disk, block in (("b", 4), ("a", 4), ("a", 5), ("b", 4)):
            world.apply_all()
            world.write(disk, block * 4096, noise(world.source.end_lsn, 4096))
            world.cut()
            world.ship_all()
        group.stop()
        group.put_back("disks", group.then["disks"], in_place=True)
        group.remove("fine")  # nothing to heal it from
        group.open()
        assert set(world.group.known.damaged_points()) == {3, 4, 5}
        world.storage.stop_at(at)
        try:
            world.apply_all()
        except Stopped:
            group.open()
        else:
            world.storage.heal()
            return
        world.apply_all()
        assert not {3, 4, 5} & set(group.served()), at
    raise AssertionError("it never came to an end")


def test_one_image_exchanged_is_unverified_until_a_scrub() -> None:
    group = Group()
    path = GROUP_DIRECTORY / "disks" / "b.raw"
    group.stop()
    group.put_back("disks", group.now["disks"])  # the same bytes, other files
    group.open()
    assert group.world.group.opening.unverified == {"a", "b"}
    assert group.served() == []
    group.world.apply_all()
    group.open()
    assert group.world.group.opening.unverified == {"a", "b"}, "a restart verifies nothing"
    assert group.served() == []
    group.scrub()
    assert group.world.group.opening.unverified == set()
    group.open()
    assert group.told() == set()
    assert group.served() == list(range(1, 13))
    assert group.world.storage.exists(path)


def test_one_image_older_in_its_own_file_is_unverified_until_a_scrub() -> None:
    """As `dd` or `rsync --inplace` put it back: by its number it is the file that we wrote."""
    group = Group()
    path = GROUP_DIRECTORY / "disks" / "b.raw"
    group.stop()
    group.put_back("disks", group.now["disks"] | {path: group.then["disks"][path]}, in_place=True)
    group.open()
    assert "b" in group.world.group.opening.unverified
    group.world.apply_all()
    assert group.served() == []
    group.scrub()
    served = group.served()
    assert served[:6] == [1, 2, 3, 4, 5, 6]
    assert len(served) < 12
    group.open()
    assert group.world.group.opening.unverified == set(), "what is on record asks for no scrub"
    assert group.served() == served


@pytest.mark.parametrize("cut_to", [None, 4096, 1 << 20], ids=["missing", "smaller", "larger"])
def test_replica_missing_or_of_another_size(cut_to: int | None) -> None:
    group = Group()
    path = GROUP_DIRECTORY / "disks" / "a.raw"
    group.stop()
    if cut_to is None:
        group.world.storage.unlink(path)
    else:
        file = group.world.storage.open(path, writable=True)
        file.truncate(cut_to)
        file.close()
    error = group.refused()
    assert "a.raw" in error.message
    assert "history accept g" in error.hint
    group.world.group.opening.accept()
    file = group.world.storage.open(path)
    assert file.size() == dict(group.world.disks)["a"], "never extended: made anew"
    file.close()
    served = group.check()
    assert 13 in served or 14 in served
    group.open()
    group.served()


# -- the history


@pytest.mark.parametrize("left", [0, 3], ids=["all applied", "inbox full"])
def test_history_older(left: int) -> None:
    group = Group(left=left)
    group.stop()
    group.put_back("history", group.then["history"])
    error = group.refused()
    assert "history ends before what its replica holds" in error.message
    group.put_back("history", group.now["history"])
    group.open()
    group.world.apply_all()
    assert group.served() == list(range(1, 13)), "put back, it is as it was"


def test_history_older_accepted() -> None:
    group = Group()
    group.stop()
    group.put_back("history", group.then["history"])
    group.refused()
    group.world.group.opening.accept()
    assert group.world.group.known.generation == 2
    assert group.world.group.known.condition == "rolled-back", (
        "as the agent says it of the generation"
    )
    group.open()
    assert group.world.group.known.condition == "rolled-back"
    served = group.check()
    assert max(served) > group.highest
    group.open()
    assert group.served() == served


def test_history_older_accepted_with_a_crash_before_every_call() -> None:
    for at in range(1, 200):
        group = Group()
        group.stop()
        group.put_back("history", group.then["history"])
        group.refused()
        group.world.storage.stop_at(at)
        try:
            group.world.group.opening.accept()
        except BaseException as error:
            if type(error).__name__ != "Stopped":
                raise
        else:
            group.world.storage.heal()
            return
        try:
            group.open()
        except DamageError:
            group.world.group.opening.accept()
        group.check()
    raise AssertionError("it never came to an end")


def test_history_without_its_newest_segment() -> None:
    group = Group()
    group.stop()
    newest = max(group.now["history"])
    group.world.storage.unlink(newest)
    assert "history ends before" in group.refused().message


def test_history_without_a_middle_segment() -> None:
    group = Group()
    group.stop()
    _, middle, *_ = sorted(group.now["history"])
    group.world.storage.unlink(middle)
    error = group.refused()
    assert "is missing" in error.message


def test_history_without_its_oldest_segments_says_how_many_points_went() -> None:
    group = Group()
    group.stop()
    oldest = min(group.now["history"])
    group.world.storage.unlink(oldest)
    group.open()
    (told,) = [event for event in group.world.events if event.name == "history.oldest_lost"]
    assert told.fields["points"] != ""
    group.check()


def test_history_gone_with_the_disks_there() -> None:
    group = Group()
    group.stop()
    group.remove("history")
    assert "history ends before" in group.refused().message
    group.world.group.opening.accept()
    group.check()


def test_another_history_of_the_same_length() -> None:
    """Set aside and begun anew, and then mixed up."""
    group, other = Group(), Group(flavour=1)
    group.stop()
    group.put_back("history", other.now["history"])
    error = group.refused()
    assert "is another than" in error.message


# -- the inbox


def test_inbox_older() -> None:
    group = Group()
    group.stop()
    group.put_back("inbox", group.then["inbox"])
    group.open()
    assert "group.mended" in group.told()
    group.world.apply_all()
    assert group.served() == list(range(1, 13)), "nobody has touched the images"
    group.check()


def test_inbox_missing_with_nothing_unapplied() -> None:
    group = Group()
    group.stop()
    group.remove("inbox")
    group.open()
    assert "group.mended" in group.told()
    group.world.apply_all()
    assert group.served() == list(range(1, 13)), "nobody has touched the images"
    group.check()


def test_inbox_missing_with_points_that_were_not_applied() -> None:
    """They were announced, so their numbers are never given again."""
    group = Group(left=3)
    group.stop()
    group.remove("inbox")
    group.open()
    group.world.apply_all()
    group.scrub()
    assert group.served() == list(range(1, 10))
    group.check()


def test_inbox_newer_than_the_rest() -> None:
    group = Group(left=3)
    group.stop()
    for path in sorted(group.now["inbox"])[:-1]:
        group.world.storage.unlink(path)
    error = group.refused()
    assert "what was acknowledged is missing" in error.message
    group.world.group.opening.accept()
    group.check()


# -- sums, index, single writes


def with_sums() -> Group:
    group = Group(points=24, old=6)
    group.retain(9_000)
    group.then["sums"], group.then["history"] = {}, group.then["history"]
    group.now = group.folders()
    assert group.now["sums"]
    return group


@pytest.mark.parametrize("how", ["missing", "older"])
def test_sums_missing_are_unverified_and_never_good(how: str) -> None:
    group = with_sums()
    group.stop()
    group.remove("sums")
    group.open()
    group.scrub()
    assert group.world.group.scrub.state.unverified_bytes > 0


def test_sums_newer() -> None:
    group = with_sums()
    group.stop()
    group.put_back("history", group.then["history"])
    group.put_back("disks", group.then["disks"])
    group.put_back("inbox", group.then["inbox"])
    group.remove("fine")
    error = group.refused()
    assert "sums" in error.message
    group.world.group.opening.accept()
    group.check()


@pytest.mark.parametrize("how", ["older", "missing", "newer"])
def test_index_is_made_anew(how: str) -> None:
    group = Group()
    while group.world.group.tidy():
        pass
    then = group._files(GROUP_DIRECTORY / "index")
    for number in range(13, 25):
        group.write(number)
        group.world.settle()
    while group.world.group.tidy():
        pass
    group.stop()
    if how == "missing":
        group.remove("index")
    elif how == "older":
        group.put_back("index", then)
    group.open()
    group.highest = 24
    assert group.check()[:12] == list(range(1, 13))


@pytest.mark.parametrize("how", ["older", "missing"])
def test_single_writes_older_or_missing_are_not_to_be_had(how: str) -> None:
    group = Group()
    group.stop()
    if how == "older":
        group.put_back("fine", group.then["fine"])
    else:
        group.remove("fine")
    group.open()
    for sequence in range(1, 13):
        group.world.check_writes(sequence)
    assert group.check()[:12] == list(range(1, 13))


def test_single_writes_newer() -> None:
    group = Group(points=24, old=6)
    group.stop()
    for folder in ("history", "disks", "inbox", "sums", "index"):
        group.put_back(folder, group.then[folder])
    assert "everything else was set back" in group.refused().message


# -- the catalog


def test_catalog_missing() -> None:
    group = Group()
    group.world.catalog.points.clear()
    group.world.catalog.generation = 0
    group.open()
    assert group.told() == set()
    assert sorted(group.world.catalog.points) == list(range(1, 13))


def test_catalog_above_the_history_where_nothing_else_speaks() -> None:
    group = Group()
    group.stop()
    group.put_back("history", group.then["history"])
    group.put_back("inbox", group.then["inbox"])
    group.world.storage.unlink(APPLIED)
    error = group.refused()
    assert "catalog or audit" in error.message
    group.world.group.opening.accept()
    group.check()


# -- several at once


def test_the_whole_group_older_goes_on_above_all_numbers() -> None:
    """It fits itself. Catalog and audit have seen more."""
    group = Group()
    group.stop()
    for folder, files in group.then.items():
        group.put_back(folder, files)
    group.open()
    assert "group.mended" in group.told()
    group.world.apply_all()
    group.scrub()
    assert group.served() == [1, 2, 3, 4, 5, 6]
    group.check()


def test_all_of_it_gone_goes_on_above_all_numbers() -> None:
    """As when it was set aside to let it sync anew."""
    group = Group()
    group.stop()
    for folder in group.now:
        group.remove(folder)
    group.open()
    group.check()


@pytest.mark.parametrize("late", ["disks", "history", "inbox", "fine", "sums"])
def test_a_copy_made_while_it_lived(late: str) -> None:
    """`cp -a`, folder by folder: one of them is younger than the others. Never a false point."""
    for left in (0, 2):
        group = Group(left=left)
        group.stop()
        for folder, files in group.then.items():
            group.put_back(folder, files if folder != late else group.now[folder])
        try:
            group.open()
        except DamageError:
            group.world.group.opening.accept()
        group.check()


def of_another_group(path: Path, content: bytes) -> tuple[Path, bytes]:
    """The same file, had it been written for group `h`."""
    if path.name == "applied":
        sequence, applied = max(
            filter(None, (unpack(content[:SLOT_BYTES]), unpack(content[SLOT_BYTES:])))
        )
        other = replace(applied, history=history_name("h").stream)
        return path, pack(other, sequence).ljust(SLOT_BYTES, b"\0") + bytes(SLOT_BYTES)
    if path.suffix == ".seg":
        header = parse_header(content, str(path))
        front = pack_header(replace(header, group="h"))
        path = Path(str(path).replace(history_name("g").directory, history_name("h").directory))
        return path, front + content[HEADER_BYTES:]
    return path, content


@pytest.mark.parametrize("folder", ["disks", "history", "inbox", "fine"])
def test_a_folder_of_another_group(folder: str) -> None:
    group = Group()
    group.stop()
    files = group.now[folder].items()
    group.put_back(folder, dict(of_another_group(path, content) for path, content in files))
    error = group.refused()
    assert "another group" in error.message
    assert folder in error.message
    assert "accept" not in error.hint
    with pytest.raises(UsageError, match="another group"):
        group.world.group.opening.accept()
    group.put_back(folder, group.now[folder], in_place=True)
    group.open()
    group.world.apply_all()
    group.scrub()
    assert group.served() == list(range(1, 13))


# -- an older version's


def test_a_group_of_a_version_without_applied_opens_in_silence() -> None:
    for left in (0, 3):
        group = Group(left=left)
        group.stop()
        group.world.storage.unlink(APPLIED)
        group.open()
        assert group.told() == set()
        group.world.apply_all()
        assert group.world.storage.exists(APPLIED)
        assert group.served() == list(range(1, 13))


def test_an_older_history_without_applied_and_without_witnesses() -> None:
    """E2: the frames are all there, and the replica holds what they come to."""
    group = Group(points=8, old=6, inbox_segment_bytes=1 << 20)
    group.stop()
    group.put_back("history", group.then["history"])
    group.world.storage.unlink(APPLIED)
    group.world.catalog.points.clear()
    error = group.refused()
    assert "holds what its history only comes to later" in error.message
    group.world.group.opening.accept()
    group.check()


def test_nothing_to_accept() -> None:
    group = Group()
    group.open()
    group.stop()
    group.world.group = group.world._new_group()
    with pytest.raises(UsageError, match="nothing to accept"):
        group.world.group.opening.accept()
