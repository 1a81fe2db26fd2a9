"""Text, images and videos to tokens and patches, and back (source: the released checkpoint). ``tokenizer`` holds the
vocabulary, ``words`` says inside of what it merges, ``tiktoken_file`` reads the released one; ``chat`` is the chat
template, ``image`` and ``video`` make patches; ``remote`` is the code that every checkpoint carries along. Read
``chat`` first.
"""
