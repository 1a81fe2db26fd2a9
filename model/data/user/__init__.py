"""A user's own data: shards or folders of images and texts are found, checked and turned into samples, and what is not
used is reported. Read ``user_data`` first.
"""
