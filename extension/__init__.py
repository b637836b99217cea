"""The part of Athanor that lives inside a WebUI's process."""
