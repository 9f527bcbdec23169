# SPDX-License-Identifier: Apache-2.0
"""What is known to be wrong, or may be, and how it is healed.

damage       which points it concerns        |  healing      a copy found, and written back
doubt        not served before it is read    |  old_content  verified before it is kept
"""
