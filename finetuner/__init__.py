"""Fine-tune FLUX on a handful of images and generate with the result at any strength. Knows nothing of Cog."""
