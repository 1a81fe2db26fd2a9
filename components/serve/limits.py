"""All bounds on what a caller may ask of the server. The error for a request beyond a bound names the bound.

Cheap checks come first: bytes as they arrive; the number of things in the request; the headers of images and videos;
the least number of tokens; the tokens. Only then is anything decoded. Everything together must also fit the model's
context. Values are ours unless a source is named.
"""

from __future__ import annotations

# A connection, whatever is asked (connection.py).
MAX_CONNECTIONS = 768  # open; a process may usually have 1,024 files
ACCEPTED_AT_ONCE = 128  # further connections that wait to be accepted
MAX_HEAD_BYTES = 32 * 2**10  # request line, headers and trailers
MAX_PIPELINED = 256  # requests that wait for another one on their connection; each takes a kilobyte
HEAD_SECONDS = 10.0  # from a request's first byte, or a new connection, to the end of its headers
BODY_SECONDS = 60.0  # from there to the end of the body
LINGER_SECONDS = 2.0  # for a client to read an answer that came before the end of its request
STALLED_SECONDS = 60.0  # for a client to take what has been sent to it

# Memory and threads, of all requests together (chat.py).
MAX_BODY_BYTES = 32 * 2**20
MAX_HELD_BYTES = 2**29  # bodies and pixels of requests that are not answered yet; the engine holds the pixels again
PREPARING_THREADS = 2  # read requests outside of the event loop
MAX_REQUESTS = 640  # chats under way; fewer than connections, so that /health is let in however busy the engine is
MAX_PREPARING = 64  # requests that wait for these threads
MAX_WAITING = 1024  # sequences in the engine's queue; more would only time out there
SMALL_BODY_BYTES = 4 * 2**10  # texts of such a body are read at once: 10 ms at most, less than a thread's turn costs

# One request: how many things (openai_api.py, conversation.py). model/codec/declared_tools.py bounds the tools.
MAX_JSON_VALUES = 2**17  # of a body, and of its calls' arguments, by commas and brackets; parsing keeps Python's lock
MAX_MESSAGES = 4096
MAX_PARTS = 4096  # of all messages' contents
MAX_CALLS = 4096  # of all messages
MAX_STOPS = 4  # source: OpenAI's API reference
MAX_STOP_CHARACTERS = 256
MAX_CHOICES = 64
MAX_NEW_TOKENS = 2**18  # of all choices, also if the request does not limit them

# One request: images and videos (media.py). model/codec/remote/image_files.py and video_files.py bound each.
MAX_IMAGES = 64
MAX_VIDEOS = 4
MAX_IMAGE_PIXELS_TOGETHER = 2**28  # as they are stored: a few seconds of decoding
MAX_VIDEO_PIXELS_TOGETHER = 2**31  # of all frames: a few seconds of decoding as well
MAX_DECODED_BYTES = 2**28  # of one of them: 10 frames of 4K video; each preparing thread has one in memory
MAX_PATCHES = 2**16  # of all of them as the model sees them: 154 MB

MAX_ERROR_CHARACTERS = 500  # an error quotes what the caller sent
