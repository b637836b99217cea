"""The embedded host: a small WebUI of our own on diffusers and gradio, started by `python install.py serve`."""
