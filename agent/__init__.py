# SPDX-License-Identifier: Apache-2.0
"""The source side: the splitter, which takes the guest's writes, and the agent, which ships them.

They are two processes. `agent.splitter` sits in the path of every guest write and so does little
and imports little; everything else here may crash or be upgraded while a guest writes. They share
files (the spool) and a control socket (replicator.control.splitter), and no memory.
"""
