# SPDX-License-Identifier: Apache-2.0
"""What lies beside what: which neighbour each part of a group fits, and what follows from that.

points/evidence  what each part says          |  applied  the replica says which batch it holds
verdict          what follows from it         |  voucher  images and sums vouch for each other
                                              |  looking  gathers what the parts say
"""
