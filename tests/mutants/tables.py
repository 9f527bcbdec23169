# SPDX-License-Identifier: Apache-2.0
"""All mutants. No I/O."""

from __future__ import annotations

from tests.mutants import (
    agent,
    applying,
    doubt,
    ends,
    journal,
    names,
    protocols,
    receiver,
    resizes,
    rooms,
    splitter,
    syncs,
)
from tests.mutants.mutant import Mutant

ALL: tuple[Mutant, ...] = (
    *journal.MUTANTS,
    *protocols.MUTANTS,
    *splitter.MUTANTS,
    *syncs.MUTANTS,
    *ends.MUTANTS,
    *agent.MUTANTS,
    *receiver.MUTANTS,
    *applying.MUTANTS,
    *doubt.MUTANTS,
    *names.MUTANTS,
    *rooms.MUTANTS,
    *resizes.MUTANTS,
)
