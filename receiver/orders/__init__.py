# SPDX-License-Identifier: Apache-2.0
"""What a person asks of the receiver.

choosing   what a text for a point means    |  control    the API: each order
           to a group                       |  recorder   each order, into the audit
describe   a group in the API's words       |  lookout    the audit's look at the histories
                                            |  leftovers  of groups that nobody names; `forget`
                                            |  reloading  a configuration that changed
"""
