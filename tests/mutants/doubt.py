# SPDX-License-Identifier: Apache-2.0
"""Images that may be from another moment: what is served of them, and what tells that they are."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_DOUBT = "tests/receiver/test_doubt.py"
_FITTING = "tests/receiver/test_fitting.py"
_SUMS = "tests/receiver/test_fitting_sums.py"
_EXCHANGED = "tests/receiver/test_exchanged.py::test_whatever_is_exchanged_no_point_is_false"
_SIDES = "tests/receiver_service/test_side_by_side.py"

MUTANTS = (
    Mutant(
        "points of images in doubt are refused",
        "receiver/damage/doubt.py",
        "    if disks := of_point(unverified, point):",
        "    if (disks := of_point(unverified, point)) and not group:",
        (f"{_DOUBT}::test_points_of_images_in_doubt_are_refused_with_what_is_awaited",),
    ),
    Mutant(
        "reads of a view that is open fail while its image is in doubt",
        "receiver/damage/doubt.py",
        "    if disk.image in doubt():",
        "    if not disk.image:",
        (f"{_DOUBT}::test_an_open_view_fails_while_its_image_is_in_doubt_and_goes_on_behind_that",),
    ),
    Mutant(
        "nothing is rolled back to a point in doubt, whoever insists",
        "receiver/group/showing.py",
        "            may_insist = unverified is not None",
        "            may_insist = True",
        (f"{_DOUBT}::test_who_insists_is_served_and_only_where_that_is_offered",),
    ),
    Mutant(
        "a restore of what was in doubt is not gone on with as true",
        "receiver/restore/progress.py",
        ', "format", "unverified")',
        ', "format")',
        (
            (
                "tests/receiver/test_restore_resume.py"
                "::test_what_was_taken_from_an_unverified_image_is_not_gone_on_with_as_true"
            ),
        ),
    ),
    Mutant(
        "doubt ends for a disk when its image has been read",
        "receiver/scrub/scrub.py",
        "                self._read_back(disk.name)\n",
        "                pass\n",
        (f"{_DOUBT}::test_a_disk_is_served_as_soon_as_its_image_is_read_back",),
    ),
    Mutant(
        "the statement says that a batch behind it may have touched an image",
        "receiver/fitting/voucher.py",
        "            is_resting=begun is None,",
        "            is_resting=True,",
        (f"{_DOUBT}::test_an_older_history_and_inbox_that_fit_each_other_serve_nothing_false",),
    ),
    Mutant(
        "what a crash leaves of a batch that was to be begun is no doubt",
        "receiver/opening/opening.py",
        "            return set() if is_there else disks",
        "            return disks",
        (f"{_DOUBT}::test_a_crash_before_any_call_raises_no_doubt",),
    ),
    Mutant(
        "what is none of the log is in the history before the statement is taken back",
        "receiver/fitting/voucher.py",
        "            if upto != NOT_OF_THE_LOG:",
        "            if True:",
        (
            (
                "tests/receiver/test_crash_points.py"
                "::test_crash_before_every_call[roll_back_and_undo-power]"
            ),
        ),
    ),
    Mutant(
        "an image that was written behind a statement at rest is in doubt",
        "receiver/fitting/looking.py",
        "    return stated is not None and replica.times(name)[0] > stated[0]",
        "    return stated is None",
        (f"{_DOUBT}::test_newer_images_beside_all_else_older_serve_nothing_false",),
    ),
    Mutant(
        "a power cut that takes back the times of an image raises no doubt",
        "receiver/fitting/looking.py",
        "    return stated is not None and replica.times(name)[0] > stated[0]",
        "    return stated is not None and replica.times(name)[0] != stated[0]",
        (f"{_DOUBT}::test_what_a_person_does_to_the_times_of_an_image_is_no_doubt_of_its_own",),
    ),
    Mutant(
        "images that nobody has touched are believed without their inbox",
        "receiver/fitting/looking.py",
        "    return applied.times.get(name) != replica.times(name)",
        "    return True",
        (f"{_FITTING}::test_inbox_older",),
    ),
    Mutant(
        "sums that lack what the history let go of are forgotten",
        "receiver/history/sums/base.py",
        "        return self.end < first or self.upto < imageless",
        "        return False",
        (f"{_EXCHANGED}[938-False]", f"{_EXCHANGED}[1022-False]"),
    ),
    Mutant(
        "an exchanged image without sums is damage until it is proven",
        "receiver/opening/opening.py",
        "        if self._is_unproven(read, unverified | self._touched):",
        "        if not self._parts:",
        (f"{_SUMS}::test_an_image_exchanged_where_sums_are_gone_is_never_acquitted_unproven",),
    ),
    Mutant(
        "where sums were lost earlier an image in doubt is damage until it is proven",
        "receiver/opening/opening.py",
        "self._is_unproven(read, unverified | self._touched)",
        "self._is_unproven(read, self._touched)",
        (f"{_SUMS}::test_sums_that_were_lost_long_ago_acquit_no_older_image",),
    ),
    Mutant(
        "an extract makes nothing of an image in doubt",
        "receiver/offline/extract.py",
        "    if doubted:\n",
        "    if not applied:\n",
        (
            "tests/offline/test_extract_side_by_side.py::test_an_image_that_a_receiver_had_in_doubt_makes_no_point",
        ),
    ),
    Mutant(
        "an audit of which nothing is left refuses orders",
        "receiver/orders/recorder.py",
        "            if kept is not None and is_gone(storage, directory, kept):",
        "            if kept is not None and not directory:",
        (f"{_SIDES}::test_a_loss_is_accepted_once_a_gone_audit_is",),
    ),
    Mutant(
        "a kept write heals what it fits",
        "receiver/damage/healing.py",
        "            self._from_writes,\n",
        "",
        ("tests/receiver/test_scrub.py::test_a_kept_write_heals_the_replica",),
    ),
)
