# SPDX-License-Identifier: Apache-2.0
"""A point becomes the state of now.

rollback   which blocks change to what; repeatable, so a crash changes nothing
"""
