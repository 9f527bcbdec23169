# SPDX-License-Identifier: Apache-2.0
"""The data_dir: where things lie, the room that is kept back in it, what nobody else writes there.

layout    files and folders, format, lock
reserve   a file to give back when the disk is full
keep_out  which paths a restore never goes to
"""
