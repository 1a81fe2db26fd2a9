"""What a sample is, how WebDataset shards hold it, how it is checked, and how it becomes tokens. Read ``sample``
first, then ``record``, the form that it has in a shard.
"""
