# SPDX-License-Identifier: Apache-2.0
"""How the daemons are told what to do: types, the HTTP control API, the splitter's JSON lines.

`types.py` and `splitter.py` do no I/O and import no HTTP; the splitter imports the latter alone.
"""
