# SPDX-License-Identifier: Apache-2.0
"""A bare history, read with no daemon: extracted from, put into words, verified with its audit.

words        records, for people              |  lock         no receiver at the same time
                                              |  reading      which points it holds
                                              |  extract      the images of a point
                                              |  whole        several, with the audit that saw
                                              |               them
                                              |  audit_check  the audit of a data_dir
                                              |  rebuild      catalog.db from the histories
"""
