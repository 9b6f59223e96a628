"""Composed scenes: a thing, in a look put together from a palette, a way of drawing and a shape, on a background."""
