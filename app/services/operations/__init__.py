"""What operators do with a whole installation: export, apply, back up, verify, set aside, carry over.

Every function here works on the stores alone and starts no scheduler.
"""
