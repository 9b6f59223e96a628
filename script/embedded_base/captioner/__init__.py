"""The embedded captioner: a FastVLM of 4.6 million parameters that names what the embedded bases draw, and how.

In go drawings, out comes ``weights/emoji-captioner``. Begin with ``__main__``.
"""
