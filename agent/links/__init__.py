# SPDX-License-Identifier: Apache-2.0
"""The agent's two ends: connected, spoken with, connected again.

splitter_link   the control socket of the splitter
receiver_link   TLS, the wire, one session after the other
"""
