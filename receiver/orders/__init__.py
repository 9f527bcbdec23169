# SPDX-License-Identifier: Apache-2.0
"""What a person asks of the receiver. Each order is declared in replicator.control.orders; here are
the parts that answer them, by what they are about; `control` puts the parts together.

groups     which group is named             |  points     listed, single writes, given up
choosing   what a text for a point means    |  views      opened, listed, closed
           to a group                       |  returning  rollback and its plan, restore
describe   a group in the API's words       |  histories  scrubs, the lock, going on without
                                            |  audit      shown, verified, begun anew
                                            |  house      status, configuration, clock

control    all of these, put together       |  recorder   each order, into the audit
                                            |  lookout    the audit's look at the histories
                                            |  leftovers  of groups that nobody names; `forget`
                                            |  reloading  a configuration that changed
"""
