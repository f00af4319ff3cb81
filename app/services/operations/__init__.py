"""What operators do with a whole installation, one folder an operation.

Every function here works on the stores alone and starts no scheduler. `stores` is what several operations share.
"""
