# SPDX-License-Identifier: Apache-2.0
"""Rules taken away one at a time: the tests that hold each must fail (`make mutants`).

    mutant      what one is, and how it is put into a copy of the tree
    run         runs the tests of each mutant, in copies                    | processes
    tables      all of them: journal, protocols, splitter, syncs, ends, agent, receiver

A mutant is what an inattentive change would do. A test that no longer notices it is no test of that
rule any more: mend the test, not the table. `test_tables` keeps the tables true in every run of the
suite: each old text stands once in its file, each named test exists.
"""
