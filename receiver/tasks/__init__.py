# SPDX-License-Identifier: Apache-2.0
"""How work is run: threads, one step at a time, retries. Knows nothing of groups.

what decides, or is only told     |  what runs
pacing   how fast work goes that  |  lane    one thread, one lock domain
         is nobody's hurry        |  beside  a step beside another
stop     what ends one group's    |  errand  now and then, on the shared disk
         work, and no other's     |  pump    apply, for as long as there is something
change   a fact became true       |
"""
