# SPDX-License-Identifier: Apache-2.0
"""A domain's disks, mirrored by libvirt's block copies: facts are read, one safe step is taken.

domain_xml     what a domain's XML says      |  connection     one, with its threads
events         what libvirt tells            |  facts          read back: domain, jobs, counters
plan           the next safe step            |  freezer, thaw  a guest's filesystems
watch, end     how a domain ended, and what  |  survey         which domains there are
               was watched of it             |
sync_tries,    what failed waits longer      |
stream_tries,                                |
source_errors                                |  driver         all of it
"""
