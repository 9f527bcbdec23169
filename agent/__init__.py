# SPDX-License-Identifier: Apache-2.0
"""The source side: the agent, its drivers, and the splitter process beside it."""
