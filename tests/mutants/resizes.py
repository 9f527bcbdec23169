# SPDX-License-Identifier: Apache-2.0
"""Disks that come back with another size."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_RESIZE = "tests/receiver/test_resize.py"

MUTANTS = (
    Mutant(
        "a disk of another size gets another image",
        "receiver/history/state.py",
        "        if disk is None or disk.size_bytes != body.size:",
        "        if disk is None:",
        (f"{_RESIZE}::test_points_have_the_size_of_their_time",),
    ),
    Mutant(
        "a view reads the image of the point's time",
        "receiver/views/point_view.py",
        "self._replica.read(disk.image, start_byte, size)",
        "self._replica.read(disk.name, start_byte, size)",
        (f"{_RESIZE}::test_points_have_the_size_of_their_time",),
    ),
    Mutant(
        "an earlier image stays while a point shows it",
        "receiver/retention/earlier_images.py",
        "    return [disk for disk in earlier if disk.slot not in shown]",
        "    return list(earlier)",
        (f"{_RESIZE}::test_the_old_image_goes_with_the_last_point_that_shows_it",),
    ),
    Mutant(
        "points go for good before the image that they show",
        "receiver/retention/earlier_images.py",
        "            self._history.drop_points(unsaid, state)",
        "            pass",
        (f"{_RESIZE}::test_points_that_were_given_up_without_a_word_stay_away_once_it_is_gone",),
    ),
    Mutant(
        "an image that no state names goes before anything is applied",
        "receiver/retention/earlier_images.py",
        "self._applier.newest_state)\n        self._remove_leftovers()\n",
        "self._applier.newest_state)\n",
        (f"{_RESIZE}::test_an_image_whose_batch_never_became_durable_is_made_anew",),
    ),
    Mutant(
        "no rollback goes across a resize",
        "receiver/group/rolling_back.py",
        "            rolling.check_target(self._applier.applied, target, self._name)\n",
        "",
        (f"{_RESIZE}::test_there_is_no_rollback_across_it_and_nothing_is_closed_by_the_refusal",),
    ),
    Mutant(
        "an image in doubt is known by its own name",
        "receiver/damage/doubt.py",
        "if member.image in unverified]",
        "if member.name in unverified]",
        (f"{_RESIZE}::test_an_exchanged_old_image_is_unverified",),
    ),
    Mutant(
        "an external disk of another size is refused",
        "receiver/session/admission.py",
        '        if hello.driver == "external":',
        "        if False:",
        ("tests/receiver_service/test_admission.py",),
    ),
    Mutant(
        "a disk that was resized behind its copy ends the stream",
        "agent/drivers/libvirt/plan.py",
        "    if status.size != disk.size or status.instance != str(disk.instance):",
        "    if status.instance != str(disk.instance):",
        ("tests/drivers/test_libvirt_plan.py",),
    ),
)
