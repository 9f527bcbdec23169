# SPDX-License-Identifier: Apache-2.0
"""What lies beside what: opening a group checks that its parts belong together.

decides                              does
evidence  what each part says
verdict   what follows from it
                                     applied   the replica says which batch it holds
                                     looking   gathers what the parts say
                                     compare   the replica's blocks with the sums on record
                                     opening   all of it, in order; and `history accept`
"""
