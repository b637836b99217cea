"""Base models: finding out what a file is, and loading it into diffusers and transformers modules."""
