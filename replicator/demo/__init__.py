# SPDX-License-Identifier: Apache-2.0
"""The story on a real guest, and what it takes: an account, a private libvirtd, a guest.

domain    the guest as XML, twice         |  guest/       built, talked to, judged
figures   the table at the end            |  accelerator  whether KVM works here
                                          |  account      an unprivileged user
                                          |  programs     our own, where it may read them
                                          |  libvirtd     a private one
                                          |  console      the guest's
                                          |  site         a whole installation in a folder
                                          |  narrator     how it is told
                                          |  story        all of it
"""
